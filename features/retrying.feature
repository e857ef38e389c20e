Feature: Trying again
  A third party may be unwell, busy or away. What was accepted for it waits, and is tried again; only what
  it refuses for good, or what took all its attempts, ends dead.

  Background:
    Given ingest is running
    And dispatch is running

  Scenario: A third party that is unwell for a moment
    Given the third party answers 503, 500, 200 in turn at /flaky
    When a client posts to /flaky
      """
      {"user_id": "u-1"}
      """
    Then the delivery to "flaky" is delivered, after attempts that were answered 503, 500, 200
    And the third party was called at /flaky more than once, with the same Idempotency-Key

  Scenario: A third party that stays unwell
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

  Scenario: A third party that asks to be called later
    # Four of them, though three attempts are all that there is: to wait as one was asked to costs none.
    Given the third party answers 429, 429, 503, 429, 200 in turn at /flaky, asking for a pause of 1 s
    When a client posts to /flaky
      """
      {"user_id": "u-1"}
      """
    Then the delivery to "flaky" is delivered, after attempts that were answered 429, 429, 503, 429, 200

  Scenario: A third party that is down for long is left in peace
    Given the third party answers 503 at /guarded
    When 100 requests are posted to /guarded at once
    Then some of the requests wait for "breaker_open"
    When the third party answers 200 at /guarded
    Then every accepted request is known as delivered
    # All of them, had each been tried even once while it was down.
    And the third party was called less than 200 times

  Scenario: A token endpoint that is down costs no attempt
    Given the third party answers 503 at /token
    When a client posts to /one
      """
      {"user_id": "u-1"}
      """
    Then some of the requests wait for "token_unavailable"
    When the third party is as usual at /token
    Then the delivery to "three" is delivered, in one attempt that was answered 200

  Scenario: Credentials that are refused lose nothing
    Given the third party answers 401 at /token
      """
      {"error": "invalid_client"}
      """
    When a client posts to /one
      """
      {"user_id": "u-1"}
      """
    Then some of the requests wait for "token_refused"

  Scenario: What is called off is not delivered any more
    Given the third party answers 503 at /token
    When a client posts to /one
      """
      {"user_id": "u-1"}
      """
    Then some of the requests wait for "token_unavailable"
    When the request is called off
    Then the answer is 200
    When the request is called off
    Then the answer is 409 with the problem "has-ended"
    When the third party is as usual at /token
    And 5 requests are posted to /one at once
    Then 5 of the requests are known as delivered
    And the third party was called 5 times in all

  Scenario: Where the order is to be kept, nobody overtakes what is tried again
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
    Then every accepted request is known as delivered
    And the third party was called for them in the order 1, 1, 1, 2, 3
