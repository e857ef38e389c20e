-- Keeps the process ${PROCESS} between its claim of deliveries to `slow` and their publication: the statement that
-- claims them lasts until the process is killed, and then commits. No other process claims such a delivery meanwhile.
CREATE FUNCTION leave_claims() RETURNS trigger LANGUAGE plpgsql AS $$
BEGIN
    IF current_setting('application_name') = '${PROCESS}' THEN
        RETURN NEW;
    END IF;
    RETURN NULL;
END $$;

CREATE FUNCTION linger_in_claim() RETURNS trigger LANGUAGE plpgsql AS $$
BEGIN
    IF current_setting('application_name') = '${PROCESS}' AND EXISTS (
        SELECT 1 FROM changed WHERE destination = 'slow' AND claimed_until IS NOT NULL
    ) THEN
        PERFORM pg_sleep(3);
    END IF;
    RETURN NULL;
END $$;

CREATE TRIGGER leave_claims BEFORE UPDATE OF claimed_until ON deliveries FOR EACH ROW
    WHEN (NEW.destination = 'slow' AND NEW.claimed_until IS NOT NULL
        AND NEW.claimed_until IS DISTINCT FROM OLD.claimed_until)
    EXECUTE FUNCTION leave_claims();

CREATE TRIGGER linger_in_claim AFTER UPDATE ON deliveries REFERENCING NEW TABLE AS changed FOR EACH STATEMENT
    EXECUTE FUNCTION linger_in_claim();
