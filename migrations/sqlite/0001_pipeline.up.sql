-- The same tables as in PostgreSQL, in STRICT form. SQLite has no type for times: they are text of a fixed length, so
-- that comparing text compares times. CHECK constraints enforce the length.

-- The accepted requests. A row is written once and never changed.
CREATE TABLE requests (
    id           integer PRIMARY KEY,
    route        text    NOT NULL,
    ordering_key text,
    -- Byte for byte as received.
    body         blob    NOT NULL,
    content_type text    NOT NULL,
    -- [[name, value], …], in order; a name may repeat.
    headers      text    NOT NULL CHECK (json_valid(headers)),
    traceparent  text,
    tracestate   text,
    -- The name of the client that sent it; null without configured clients, and for adopted requests.
    client       text,
    -- topic/partition/offset of the record from which it was adopted; null if it was accepted over HTTP.
    origin       text,
    -- Identifies that record, also if its topic was deleted and recreated; null like origin.
    adoption     blob,
    accepted_at  text    NOT NULL CHECK (accepted_at GLOB '????-??-??T??:??:??.??????+00:00')
) STRICT;

-- Ensures that a record is adopted only once, for as long as its request is kept.
CREATE UNIQUE INDEX requests_adoption ON requests (adoption) WHERE adoption IS NOT NULL;

-- The state of one request at one destination.
CREATE TABLE deliveries (
    request_id        integer NOT NULL REFERENCES requests (id) ON DELETE CASCADE,
    destination       text    NOT NULL,
    state             text    NOT NULL
        CHECK (state IN ('pending', 'retrying', 'delivered', 'dead', 'cancelled')),
    attempts          integer NOT NULL,
    -- Number of attempts that counted since its time window began, which is when its request was accepted or
    -- when the delivery was replayed.
    counted_attempts  integer NOT NULL DEFAULT 0,
    window_started_at text    NOT NULL CHECK (window_started_at GLOB '????-??-??T??:??:??.??????+00:00'),
    -- When to act if no outcome arrives; null after it has ended.
    due_at            text    CHECK (due_at GLOB '????-??-??T??:??:??.??????+00:00'),
    -- When it was published last; null while it waits. The ingest that accepts a request publishes it first.
    published_at      text    CHECK (published_at GLOB '????-??-??T??:??:??.??????+00:00'),
    -- Until this time, only one ingest may publish or end it; null while it is not claimed.
    claimed_until     text    CHECK (claimed_until GLOB '????-??-??T??:??:??.??????+00:00'),
    -- The cause of a deferral. With 'key_busy', the delivery only waits until due_at. With 'order', it waits for the
    -- earlier deliveries with its ordering key to end. With another cause, it waits for its release.
    deferred_by       text,
    -- Deliveries with the same value to one destination are made one after the other; null without strict order.
    ordering_group    text,
    -- The start of the attempt that was reported last: reports of earlier attempts are repetitions.
    reported_at       text    CHECK (reported_at GLOB '????-??-??T??:??:??.??????+00:00'),
    last_status       integer,
    last_error_class  text,
    last_error        text,
    -- The reason why it is dead.
    reason            text,
    updated_at        text    NOT NULL CHECK (updated_at GLOB '????-??-??T??:??:??.??????+00:00'),
    PRIMARY KEY (request_id, destination),
    CHECK ((due_at IS NOT NULL) = (state IN ('pending', 'retrying'))),
    CHECK (due_at IS NOT NULL OR (published_at IS NULL AND deferred_by IS NULL)),
    CHECK (published_at IS NULL OR deferred_by IS NULL),
    CHECK (due_at IS NOT NULL OR claimed_until IS NULL),
    CHECK ((reason IS NOT NULL) = (state = 'dead'))
) STRICT, WITHOUT ROWID;

-- One index for each way in which a delivery waits: for due_at, for an outcome, for its destination, for an earlier one
-- of its ordering group. Each has the order in which deliveries are claimed, because many may be due at the same time.
CREATE INDEX deliveries_planned ON deliveries (due_at, request_id)
    WHERE due_at IS NOT NULL AND published_at IS NULL AND (deferred_by IS NULL OR deferred_by = 'key_busy');
CREATE INDEX deliveries_published ON deliveries (due_at, request_id) WHERE published_at IS NOT NULL;
CREATE INDEX deliveries_deferred ON deliveries (destination, due_at, request_id)
    WHERE deferred_by <> 'order' AND deferred_by <> 'key_busy';
-- The same deliveries, in the order in which their time windows end.
CREATE INDEX deliveries_expiring ON deliveries (destination, window_started_at, request_id)
    WHERE deferred_by <> 'order' AND deferred_by <> 'key_busy';
CREATE INDEX deliveries_ordering_group ON deliveries (ordering_group, destination, request_id)
    WHERE ordering_group IS NOT NULL AND due_at IS NOT NULL;
-- The first delivery of each ordering group: the others wait for it.
CREATE INDEX deliveries_in_turn ON deliveries (ordering_group, destination)
    WHERE ordering_group IS NOT NULL AND due_at IS NOT NULL AND deferred_by IS DISTINCT FROM 'order';
CREATE INDEX deliveries_dead ON deliveries (request_id, destination) WHERE state = 'dead';
CREATE INDEX deliveries_dead_at_destination ON deliveries (destination, request_id) WHERE state = 'dead';

-- Destinations with deferred deliveries, and the number of deliveries that the next release makes due.
CREATE TABLE slow_starts (
    destination text    PRIMARY KEY,
    batch       integer NOT NULL CHECK (batch > 0),
    -- The result of the last release so far: null, 'progress' or 'limit'.
    signal      text    CHECK (signal IN ('progress', 'limit')),
    -- Number of released deliveries that ended without a call: the same number is released immediately.
    returned    integer NOT NULL DEFAULT 0 CHECK (returned >= 0),
    next_at     text    NOT NULL CHECK (next_at GLOB '????-??-??T??:??:??.??????+00:00')
) STRICT, WITHOUT ROWID;

-- The calls for deliveries. A number is repeated if a record was read again after a crash.
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
    -- topic/partition/offset of the record that caused it.
    origin           text,
    PRIMARY KEY (request_id, destination, number, started_at),
    FOREIGN KEY (request_id, destination) REFERENCES deliveries ON DELETE CASCADE
) STRICT, WITHOUT ROWID;

-- Replays of dead letters: filter, rate and progress. A replay processes requests and destinations in order, so an
-- interruption neither skips nor repeats dead letters.
CREATE TABLE replays (
    id               integer PRIMARY KEY AUTOINCREMENT,
    -- The filter; null matches all. Only dead letters that existed when the replay was requested match.
    route            text,
    destination      text,
    reason           text,
    error_class      text,
    died_since       text             CHECK (died_since GLOB '????-??-??T??:??:??.??????+00:00'),
    died_before      text    NOT NULL CHECK (died_before GLOB '????-??-??T??:??:??.??????+00:00'),
    -- rate_count dead letters in rate_millis milliseconds.
    rate_count       integer NOT NULL CHECK (rate_count > 0),
    rate_millis      integer NOT NULL CHECK (rate_millis > 0),
    state            text    NOT NULL CHECK (state IN ('running', 'done', 'stopped')),
    replayed         integer NOT NULL,
    last_request_id  integer NOT NULL,
    last_destination text    NOT NULL,
    next_at          text    NOT NULL CHECK (next_at GLOB '????-??-??T??:??:??.??????+00:00'),
    updated_at       text    NOT NULL CHECK (updated_at GLOB '????-??-??T??:??:??.??????+00:00')
) STRICT;

CREATE INDEX replays_running ON replays (next_at) WHERE state = 'running';

-- The request of each idempotency key. No foreign key, because a key is claimed before its request is inserted, and
-- may outlive it.
CREATE TABLE idempotency_keys (
    route       text    NOT NULL,
    -- The client that owns the key: 'client:' and its name, or 'open' without configured clients.
    scope       text    NOT NULL,
    key         text    NOT NULL,
    request_id  integer NOT NULL,
    fingerprint blob    NOT NULL CHECK (length(fingerprint) = 32),
    expires_at  text    NOT NULL CHECK (expires_at GLOB '????-??-??T??:??:??.??????+00:00'),
    PRIMARY KEY (route, scope, key)
) STRICT, WITHOUT ROWID;

CREATE INDEX idempotency_keys_expires_at ON idempotency_keys (expires_at);
-- For the purge, which keeps requests with a key.
CREATE INDEX idempotency_keys_request_id ON idempotency_keys (request_id);

-- Requests that are committed but not yet acknowledged by the broker. No cascade: an unpublished request must not be
-- purged.
CREATE TABLE outbox (
    request_id integer PRIMARY KEY REFERENCES requests (id),
    node_id    integer NOT NULL
) STRICT;

-- Lets each node read only its own rows, in the order of ids.
CREATE INDEX outbox_node ON outbox (node_id, request_id);

-- The leases of node ids. Times are of this database's clock.
CREATE TABLE nodes (
    node_id    integer PRIMARY KEY CHECK (node_id BETWEEN 0 AND 1023),
    holder     text    NOT NULL,
    epoch      integer NOT NULL,
    expires_at text    NOT NULL CHECK (expires_at GLOB '????-??-??T??:??:??.??????+00:00')
) STRICT;
