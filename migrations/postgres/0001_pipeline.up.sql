-- What was accepted. A row is written once and never changed.
CREATE TABLE requests (
    id           bigint      PRIMARY KEY,
    route        text        NOT NULL,
    ordering_key text,
    -- Byte for byte as it came: JSON types would reorder, round and unescape.
    body         bytea       NOT NULL,
    content_type text        NOT NULL,
    -- [[name, value], …]: in order, a name may repeat.
    headers      jsonb       NOT NULL,
    traceparent  text,
    tracestate   text,
    accepted_at  timestamptz NOT NULL
);

-- The state of one request at one destination.
CREATE TABLE deliveries (
    request_id       bigint      NOT NULL REFERENCES requests (id) ON DELETE CASCADE,
    destination      text        NOT NULL,
    state            text        NOT NULL
        CHECK (state IN ('pending', 'retrying', 'delivered', 'dead', 'cancelled')),
    attempts         integer     NOT NULL,
    -- When to act if nothing was heard; null once it has ended.
    due_at           timestamptz,
    last_status      integer,
    last_error_class text,
    last_error       text,
    -- Why it is dead.
    reason           text,
    updated_at       timestamptz NOT NULL,
    PRIMARY KEY (request_id, destination),
    CHECK ((due_at IS NOT NULL) = (state IN ('pending', 'retrying'))),
    CHECK ((reason IS NOT NULL) = (state = 'dead'))
);

CREATE INDEX deliveries_due_at ON deliveries (due_at) WHERE due_at IS NOT NULL;

-- One call made for a delivery.
CREATE TABLE attempts (
    request_id       bigint      NOT NULL,
    destination      text        NOT NULL,
    number           integer     NOT NULL CHECK (number > 0),
    started_at       timestamptz NOT NULL,
    duration_ms      bigint      NOT NULL,
    outcome          text        NOT NULL,
    status           integer,
    error_class      text,
    error            text,
    response_excerpt text,
    trace_id         text,
    PRIMARY KEY (request_id, destination, number),
    FOREIGN KEY (request_id, destination) REFERENCES deliveries ON DELETE CASCADE
);

-- Which request a client's key stands for. A key is claimed before its request is inserted, and may
-- outlive it: no foreign key.
CREATE TABLE idempotency_keys (
    route       text        NOT NULL,
    key         text        NOT NULL,
    request_id  bigint      NOT NULL,
    fingerprint bytea       NOT NULL CHECK (octet_length(fingerprint) = 32),
    expires_at  timestamptz NOT NULL,
    PRIMARY KEY (route, key)
);

CREATE INDEX idempotency_keys_expires_at ON idempotency_keys (expires_at);

-- Committed and not yet acknowledged by the broker. Read in the order of ids, which the primary key
-- gives. No cascade: what is not published must not be purged.
CREATE TABLE outbox (
    request_id bigint   PRIMARY KEY REFERENCES requests (id),
    node_id    smallint NOT NULL
);

-- Who may make ids under which node id. Times are of this database's clock.
CREATE TABLE nodes (
    node_id    smallint    PRIMARY KEY CHECK (node_id BETWEEN 0 AND 1023),
    holder     text        NOT NULL,
    epoch      bigint      NOT NULL,
    expires_at timestamptz NOT NULL
);
