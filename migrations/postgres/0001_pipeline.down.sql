DROP TABLE nodes;
DROP TABLE outbox;
DROP TABLE idempotency_keys;
DROP TABLE replays;
DROP TABLE attempts;
DROP TABLE holds;
DROP TABLE deliveries;
DROP TABLE requests;
