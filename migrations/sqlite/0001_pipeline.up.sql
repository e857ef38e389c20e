-- The same tables as PostgreSQL's, in STRICT form. SQLite has no type for times: they are text of one
-- length, so that comparing texts compares times. One kind of writer must keep to it: the checks see
-- that it does.

-- What was accepted. A row is written once and never changed.
CREATE TABLE requests (
    id           integer PRIMARY KEY,
    route        text    NOT NULL,
    ordering_key text,
    -- Byte for byte as it came.
    body         blob    NOT NULL,
    content_type text    NOT NULL,
    -- [[name, value], …]: in order, a name may repeat.
    headers      text    NOT NULL CHECK (json_valid(headers)),
    traceparent  text,
    tracestate   text,
    accepted_at  text    NOT NULL CHECK (accepted_at GLOB '????-??-??T??:??:??.??????+00:00')
) STRICT;

-- The state of one request at one destination.
CREATE TABLE deliveries (
    request_id       integer NOT NULL REFERENCES requests (id) ON DELETE CASCADE,
    destination      text    NOT NULL,
    state            text    NOT NULL
        CHECK (state IN ('pending', 'retrying', 'delivered', 'dead', 'cancelled')),
    attempts         integer NOT NULL,
    -- When to act if nothing was heard; null once it has ended.
    due_at           text    CHECK (due_at GLOB '????-??-??T??:??:??.??????+00:00'),
    last_status      integer,
    last_error_class text,
    last_error       text,
    -- Why it is dead.
    reason           text,
    updated_at       text    NOT NULL CHECK (updated_at GLOB '????-??-??T??:??:??.??????+00:00'),
    PRIMARY KEY (request_id, destination),
    CHECK ((due_at IS NOT NULL) = (state IN ('pending', 'retrying'))),
    CHECK ((reason IS NOT NULL) = (state = 'dead'))
) STRICT, WITHOUT ROWID;

CREATE INDEX deliveries_due_at ON deliveries (due_at) WHERE due_at IS NOT NULL;

-- One call made for a delivery.
CREATE TABLE attempts (
    request_id       integer NOT NULL,
    destination      text    NOT NULL,
    number           integer NOT NULL CHECK (number > 0),
    started_at       text    NOT NULL CHECK (started_at GLOB '????-??-??T??:??:??.??????+00:00'),
    duration_ms      integer NOT NULL,
    outcome          text    NOT NULL,
    status           integer,
    error_class      text,
    error            text,
    response_excerpt text,
    trace_id         text,
    PRIMARY KEY (request_id, destination, number),
    FOREIGN KEY (request_id, destination) REFERENCES deliveries ON DELETE CASCADE
) STRICT, WITHOUT ROWID;

-- Which request a client's key stands for. A key is claimed before its request is inserted, and may
-- outlive it: no foreign key.
CREATE TABLE idempotency_keys (
    route       text    NOT NULL,
    key         text    NOT NULL,
    request_id  integer NOT NULL,
    fingerprint blob    NOT NULL CHECK (length(fingerprint) = 32),
    expires_at  text    NOT NULL CHECK (expires_at GLOB '????-??-??T??:??:??.??????+00:00'),
    PRIMARY KEY (route, key)
) STRICT, WITHOUT ROWID;

CREATE INDEX idempotency_keys_expires_at ON idempotency_keys (expires_at);

-- Committed and not yet acknowledged by the broker. Read in the order of ids. No cascade: what is not
-- published must not be purged.
CREATE TABLE outbox (
    request_id integer PRIMARY KEY REFERENCES requests (id),
    node_id    integer NOT NULL
) STRICT;

-- Who may make ids under which node id. Times are of this database's clock.
CREATE TABLE nodes (
    node_id    integer PRIMARY KEY CHECK (node_id BETWEEN 0 AND 1023),
    holder     text    NOT NULL,
    epoch      integer NOT NULL,
    expires_at text    NOT NULL CHECK (expires_at GLOB '????-??-??T??:??:??.??????+00:00')
) STRICT;
