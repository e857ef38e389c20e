Feature: Accepting a request
  A 201 is a promise: the request is stored in the database and will be delivered or end as a dead letter.

  Scenario: An accepted request gets an id and a URL for its status
    Given ingest is running
    When a client posts to /one
      """
      {"user_id": "u-1", "prompt": "What is the value of k1?", "data": [{"key": "k1", "value": "15"}]}
      """
    Then the answer is 201
    And it contains a request id of 20 digits
    And its Location header is the URL of that request

  Scenario: The status of an accepted request is available
    Given ingest is running
    When a client posts to /one
      """
      {"user_id": "u-1"}
      """
    Then the request is known with the route "one" and the media type "application/json"
    And it was accepted within the last minute
    And its delivery to "three" is pending

  Scenario: While the broker is unreachable, a request is accepted and waits in the outbox
    Given a broker that can become unreachable
    And ingest is running
    When the broker becomes unreachable
    And a client posts to /one
      """
      { "user_id":"u-1",   "weight": 1.0, "weight": 1e400, "name": "\u00e9" }
      """
    Then the answer is 201
    And the request waits in the outbox, byte for byte as it was posted

  Scenario: An accepted request is published, with its id and its trace
    Given ingest is running
    When a client with the trace 0af7651916cd43dd8448eb211c80319c posts to /one
      """
      { "user_id":"u-1",   "weight": 1.0 }
      """
    Then the topic of "one" receives a record of the request, byte for byte as it was posted
    And the record has the headers
      | ce_specversion | 1.0                 |
      | ce_source      | /throughline/ingest |
      | ce_type        | one                 |
      | content-type   | application/json    |
    And the record's key is the request's id
    And the record's time is the acceptance time of the request
    And the record continues the trace 0af7651916cd43dd8448eb211c80319c

  Scenario: A repeated request gets the answer of the first one
    Given ingest is running
    When a client posts to /one with the Idempotency-Key "order-7"
      """
      {"user_id": "u-1"}
      """
    And a client posts to /one with the Idempotency-Key "order-7"
      """
      {"user_id": "u-1"}
      """
    Then both answers are 201 with the same request id

  Scenario: An Idempotency-Key is valid for one body only
    Given ingest is running
    When a client posts to /one with the Idempotency-Key "order-7"
      """
      {"user_id": "u-1"}
      """
    And a client posts to /one with the Idempotency-Key "order-7"
      """
      {"user_id": "u-2"}
      """
    Then the answer is 422 with the problem "idempotency-key-reused"

  Scenario: An Idempotency-Key belongs to the client that sends it
    Given only these clients are configured
      | client | key                 | routes | manage |
      | shop   | the-key-of-the-shop | one    | false  |
      | crm    | the-key-of-the-crm  | one    | false  |
    And ingest is running
    When a client with the key "the-key-of-the-shop" posts to /one with the Idempotency-Key "order-7"
      """
      {"user_id": "u-1"}
      """
    And a client with the key "the-key-of-the-crm" posts to /one with the Idempotency-Key "order-7"
      """
      {"user_id": "u-1"}
      """
    Then both answers are 201 with different request ids
    When a client with the key "the-key-of-the-crm" posts to /one with the Idempotency-Key "order-7"
      """
      {"user_id": "u-2"}
      """
    Then the answer is 422 with the problem "idempotency-key-reused"

  Scenario: The length of an ordering key is limited
    Given ingest is running
    When a client posts to /ordered with an ordering key of 255 characters
    Then the answer is 201
    When a client posts to /ordered with an ordering key of 256 characters
    Then the answer is 422 with the problem "schema-violation"
    And its errors point at
      | /user |
