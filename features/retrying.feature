Feature: Retrying
  A third party may fail, be busy or be down. Its deliveries wait and are retried. A delivery ends dead only if the
  third party rejects it permanently, or after all attempts.

  Background:
    Given ingest is running
    And dispatch is running

  Scenario: A third party that fails briefly
    Given the third party answers 503, 500, 200 in turn at /flaky
    When a client posts to /flaky
      """
      {"user_id": "u-1"}
      """
    Then the delivery to "flaky" is delivered, after attempts that were answered 503, 500, 200
    And the third party was called at /flaky more than once, with the same Idempotency-Key

  Scenario: A third party that keeps failing
    Given the third party answers 503 at /flaky
      """
      {"error": "try later"}
      """
    When a client posts to /flaky
      """
      { "user_id":"u-1" }
      """
    Then the delivery to "flaky" is dead, with the reason "attempts_exhausted"
    And its last attempt was
      | number           | 3                      |
      | outcome          | dead                   |
      | status           | 503                    |
      | error_class      | server_error           |
      | response_excerpt | {"error": "try later"} |
    And there is a dead letter of the request, byte for byte as it was posted

  Scenario: A third party that requests a pause
    # Four retries, although three attempts are allowed: a requested pause uses up no attempt.
    Given the third party answers 429, 429, 503, 429, 200 in turn at /flaky, with a Retry-After of 1 s
    When a client posts to /flaky
      """
      {"user_id": "u-1"}
      """
    Then the delivery to "flaky" is delivered, after attempts that were answered 429, 429, 503, 429, 200

  Scenario: A third party that is down for long is called rarely
    Given the third party answers 503 at /guarded
    When 100 requests are posted to /guarded concurrently
    Then some of the requests are deferred by "breaker_open"
    When the third party answers 200 at /guarded
    Then every accepted request is recorded as delivered
    # 200 calls would mean that every request was attempted once during the outage.
    And the third party was called less than 200 times

  Scenario: A token endpoint that is down uses up no attempts
    Given the third party answers 503 at /token
    When a client posts to /one
      """
      {"user_id": "u-1"}
      """
    Then some of the requests are deferred by "token_unavailable"
    When the third party answers normally at /token
    Then the delivery to "three" is delivered, in one attempt that was answered 200

  Scenario: Rejected credentials lose no request
    Given the third party answers 401 at /token
      """
      {"error": "invalid_client"}
      """
    When a client posts to /one
      """
      {"user_id": "u-1"}
      """
    Then some of the requests are deferred by "token_refused"

  Scenario: A cancelled request is not delivered
    Given the third party answers 503 at /token
    When a client posts to /one
      """
      {"user_id": "u-1"}
      """
    Then some of the requests are deferred by "token_unavailable"
    When the request is cancelled
    Then the answer is 200
    When the request is cancelled
    Then the answer is 409 with the problem "has-ended"
    When the third party answers normally at /token
    And 5 requests are posted to /one concurrently
    Then 5 of the requests are recorded as delivered
    And the third party was called 5 times in total

  Scenario: In strict order, no request overtakes one that is retried
    Given the third party answers 503, 503, 200 in turn at /flaky
    When a client posts to /ordered
      """
      {"user": "u-1", "step": 1}
      """
    And a client posts to /ordered
      """
      {"user": "u-1", "step": 2}
      """
    And a client posts to /ordered
      """
      {"user": "u-1", "step": 3}
      """
    Then every accepted request is recorded as delivered
    And the third party received them in the order 1, 1, 1, 2, 3
