Feature: Retaining
  What has ended is kept for as long as operators say, and is then purged. What has not ended stays, however old it is.

  Background:
    Given what was delivered is kept for 1ms
    And ingest is running
    And dispatch is running

  Scenario: What was delivered long ago is purged, and what waits or is dead is kept
    Given the third party answers 503 at /token
    And the third party answers 400 at /flaky
    When a client posts to /one
      """
      {"user_id": "u-1"}
      """
    Then some of the requests wait for "token_unavailable"
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
    When what ended long ago is purged
    Then the request is not known any more
    And 1 dead letters are listed for the destination "flaky"
    When the third party is as usual at /token
    And the third party was called 3 times
    Then all but one of the requests are known

  Scenario: What an Idempotency-Key stands for is not purged before its key is forgotten
    When a client posts to /github with the Idempotency-Key "k-1"
      """
      {"user_id": "u-1"}
      """
    Then the delivery to "receiver" is delivered, in one attempt that was answered 200
    And nothing waits in the outbox
    When what ended long ago is purged
    And a client posts to /github with the Idempotency-Key "k-1"
      """
      {"user_id": "u-1"}
      """
    Then both answers are 201 with the same request id
    And every accepted request is known as delivered
