Feature: Retaining
  Ended requests are kept for the configured retention and then purged. Requests that have not ended are never purged.

  Background:
    Given delivered requests are kept for 1ms
    And ingest is running
    And dispatch is running

  Scenario: Expired delivered requests are purged; waiting and dead ones are kept
    Given the third party answers 503 at /token
    And the third party answers 400 at /flaky
    When a client posts to /one
      """
      {"user_id": "u-1"}
      """
    Then some of the requests are deferred by "token_unavailable"
    When a client posts to /flaky
      """
      {"user_id": "u-2"}
      """
    Then the delivery to "flaky" is dead, with the reason "rejected"
    When a client posts to /github
      """
      {"user_id": "u-3"}
      """
    Then the delivery to "receiver" is delivered, in one attempt that was answered 200
    And nothing waits in the outbox
    When expired requests are purged
    Then the request is unknown
    And 1 dead letters are listed for the destination "flaky"
    When the third party answers normally at /token
    And the third party was called 3 times
    Then all but one of the requests still exist

  Scenario: A request is not purged before its Idempotency-Key expires
    When a client posts to /github with the Idempotency-Key "k-1"
      """
      {"user_id": "u-1"}
      """
    Then the delivery to "receiver" is delivered, in one attempt that was answered 200
    And nothing waits in the outbox
    When expired requests are purged
    And a client posts to /github with the Idempotency-Key "k-1"
      """
      {"user_id": "u-1"}
      """
    Then both answers are 201 with the same request id
    And every accepted request is recorded as delivered
