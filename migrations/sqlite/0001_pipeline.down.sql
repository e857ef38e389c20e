DROP TABLE nodes;
DROP TABLE outbox;
DROP TABLE idempotency_keys;
DROP TABLE attempts;
DROP TABLE deliveries;
DROP TABLE requests;
