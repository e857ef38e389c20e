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
    -- The name of the configured client that sent it; null if nobody in particular may call, or it was adopted.
    client       text,
    -- topic/partition/offset of the record that it was adopted from; null if it came by HTTP.
    origin       text,
    -- What tells that record from all others, also from those of a topic of the same name; null like origin.
    adoption     bytea,
    accepted_at  timestamptz NOT NULL
);

-- A record is adopted once, as long as its request is kept.
CREATE UNIQUE INDEX requests_adoption ON requests (adoption) WHERE adoption IS NOT NULL;

-- The state of one request at one destination.
CREATE TABLE deliveries (
    request_id       bigint      NOT NULL REFERENCES requests (id) ON DELETE CASCADE,
    destination      text        NOT NULL,
    state            text        NOT NULL
        CHECK (state IN ('pending', 'retrying', 'delivered', 'dead', 'cancelled')),
    attempts         integer     NOT NULL,
    -- How many of the attempts counted since its time began, which is when its request was accepted or when
    -- it was replayed.
    spent            integer     NOT NULL DEFAULT 0,
    since            timestamptz NOT NULL,
    -- When to act if nothing was heard; null once it has ended.
    due_at           timestamptz,
    -- When it was published last; null while it waits for its time. Whoever accepts a request publishes it.
    published_at     timestamptz,
    -- Until then one ingest publishes it or ends it, and no other does; null while none works on it.
    claimed_until    timestamptz,
    -- What it waits for that was deferred. Its destination's hold says how many may go on; or it is 'key_busy', and
    -- it waits for its time alone; or it is 'order', and those before it in its lane have to end first.
    deferred_by      text,
    -- Deliveries of one lane to one destination are made one after the other; null where no order is kept.
    lane             text,
    -- When what was reported last had begun: what is not later was heard of before.
    reported_at      timestamptz,
    last_status      integer,
    last_error_class text,
    last_error       text,
    -- Why it is dead.
    reason           text,
    updated_at       timestamptz NOT NULL,
    PRIMARY KEY (request_id, destination),
    CHECK ((due_at IS NOT NULL) = (state IN ('pending', 'retrying'))),
    CHECK (due_at IS NOT NULL OR (published_at IS NULL AND deferred_by IS NULL)),
    CHECK (published_at IS NULL OR deferred_by IS NULL),
    CHECK (due_at IS NOT NULL OR claimed_until IS NULL),
    CHECK ((reason IS NOT NULL) = (state = 'dead'))
);

-- One index for each way in which a delivery waits: for its time, for news, for its destination, for its turn; in
-- the order in which they are taken, many of which may be due at the same time.
CREATE INDEX deliveries_planned ON deliveries (due_at, request_id)
    WHERE due_at IS NOT NULL AND published_at IS NULL AND (deferred_by IS NULL OR deferred_by = 'key_busy');
CREATE INDEX deliveries_published ON deliveries (due_at, request_id) WHERE published_at IS NOT NULL;
CREATE INDEX deliveries_deferred ON deliveries (destination, due_at, request_id)
    WHERE deferred_by <> 'order' AND deferred_by <> 'key_busy';
-- The same, in the order in which their time is over.
CREATE INDEX deliveries_expiring ON deliveries (destination, since, request_id)
    WHERE deferred_by <> 'order' AND deferred_by <> 'key_busy';
CREATE INDEX deliveries_lane ON deliveries (lane, destination, request_id)
    WHERE lane IS NOT NULL AND due_at IS NOT NULL;
-- Whose turn it is, for whom the others of its lane wait.
CREATE INDEX deliveries_in_turn ON deliveries (lane, destination)
    WHERE lane IS NOT NULL AND due_at IS NOT NULL AND deferred_by IS DISTINCT FROM 'order';
CREATE INDEX deliveries_dead ON deliveries (request_id, destination) WHERE state = 'dead';
CREATE INDEX deliveries_dead_at_destination ON deliveries (destination, request_id) WHERE state = 'dead';

-- A destination whose deliveries are deferred, and how many of them may go on next.
CREATE TABLE holds (
    destination text        PRIMARY KEY,
    allowance   integer     NOT NULL CHECK (allowance > 0),
    -- What was heard since some were let go: null, 'progress' or 'limit'.
    news        text        CHECK (news IN ('progress', 'limit')),
    -- How many of those that were let go ended without a call: as many others may go at once.
    returned    integer     NOT NULL DEFAULT 0 CHECK (returned >= 0),
    next_at     timestamptz NOT NULL
);

-- One call made for a delivery. A number comes again where a crash has had its record read again.
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
    -- topic/partition/offset of the record by which it was made.
    origin           text,
    PRIMARY KEY (request_id, destination, number, started_at),
    FOREIGN KEY (request_id, destination) REFERENCES deliveries ON DELETE CASCADE
);

-- Dead letters on their way back: which are meant, how fast, and how far it has come. In the order of
-- requests and destinations, so that an interruption loses no place and repeats none.
CREATE TABLE replays (
    id               bigint      GENERATED ALWAYS AS IDENTITY PRIMARY KEY,
    -- Which are meant; null is any. Only those that had died before it was asked for.
    route            text,
    destination      text,
    reason           text,
    error_class      text,
    died_since       timestamptz,
    died_before      timestamptz NOT NULL,
    -- So many in so many milliseconds.
    rate_count       integer     NOT NULL CHECK (rate_count > 0),
    rate_millis      bigint      NOT NULL CHECK (rate_millis > 0),
    state            text        NOT NULL CHECK (state IN ('running', 'done', 'stopped')),
    replayed         bigint      NOT NULL,
    last_request_id  bigint      NOT NULL,
    last_destination text        NOT NULL,
    next_at          timestamptz NOT NULL,
    updated_at       timestamptz NOT NULL
);

CREATE INDEX replays_running ON replays (next_at) WHERE state = 'running';

-- The request that an idempotency key stands for. A key is claimed before its request is inserted, and may
-- outlive it: no foreign key.
CREATE TABLE idempotency_keys (
    route       text        NOT NULL,
    -- Whose key it is: 'client:' and the client's name, 'open' where no clients are configured, 'adopted' for
    -- keys that ingest makes for adopted records.
    scope       text        NOT NULL,
    key         text        NOT NULL,
    request_id  bigint      NOT NULL,
    fingerprint bytea       NOT NULL CHECK (octet_length(fingerprint) = 32),
    expires_at  timestamptz NOT NULL,
    PRIMARY KEY (route, scope, key)
);

CREATE INDEX idempotency_keys_expires_at ON idempotency_keys (expires_at);
-- What a key stands for is not purged.
CREATE INDEX idempotency_keys_request_id ON idempotency_keys (request_id);

-- Committed and not yet acknowledged by the broker. No cascade: what is not published must not be purged.
CREATE TABLE outbox (
    request_id bigint   PRIMARY KEY REFERENCES requests (id),
    node_id    smallint NOT NULL
);

-- Each node reads its own rows, in the order of ids, however many others have.
CREATE INDEX outbox_node ON outbox (node_id, request_id);

-- Who may make ids under which node id. Times are of this database's clock.
CREATE TABLE nodes (
    node_id    smallint    PRIMARY KEY CHECK (node_id BETWEEN 0 AND 1023),
    holder     text        NOT NULL,
    epoch      bigint      NOT NULL,
    expires_at timestamptz NOT NULL
);
