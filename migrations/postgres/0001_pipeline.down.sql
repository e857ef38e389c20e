DROP TABLE nodes;
DROP TABLE outbox;
DROP TABLE idempotency_keys;
DROP TABLE replays;
DROP TABLE attempts;
DROP TABLE slow_starts;
DROP TABLE deliveries;
DROP TABLE requests;
