Feature: Surviving
  Every accepted request is delivered, whichever program is killed or stopped meanwhile.

  Scenario: Ingest is killed between commit and publication
    Given a broker that can become unreachable
    And ingest is running
    And dispatch is running
    When the broker becomes unreachable
    And 20 requests are posted to /one concurrently
    Then all of them are accepted
    When ingest is killed
    And the broker is reachable again
    And ingest is started again
    And 20 requests are posted to /one concurrently
    Then every accepted request reaches the third party
    And every accepted request is recorded as delivered
    And nothing waits in the outbox

  Scenario: The broker is unreachable for a while
    Given a broker that can become unreachable
    And ingest is running
    And dispatch is running
    When the broker becomes unreachable
    And 20 requests are posted to /one concurrently
    And the broker is reachable again
    And 20 requests are posted to /one concurrently
    Then every accepted request reaches the third party
    And every accepted request is recorded as delivered
    And nothing waits in the outbox

  Scenario: Dispatch is killed in the middle of a call
    Given ingest is running
    And dispatch is running
    And the third party never answers at /three
    When a client posts to /one
      """
      {"user_id": "u-1"}
      """
    Then the third party is called at /three with a token that it issued
    # These are finished and committed; the record above, which precedes them, is not.
    When 50 requests are posted to /github concurrently
    Then 50 of the requests are recorded as delivered
    When dispatch is killed
    And the third party answers 200 at /three
    And dispatch is started again
    Then every accepted request is recorded as delivered
    And the third party was called at /three more than once, with the same Idempotency-Key

  Scenario: Ingest is killed under load
    Given ingest is running
    And dispatch is running
    When clients post to /one continuously
    And 100 of their requests are accepted
    And ingest is killed
    And ingest is started again
    Then every accepted request reaches the third party
    And every accepted request is recorded as delivered

  Scenario: Dispatch is killed under load
    Given ingest is running
    And dispatch is running
    And the third party answers slowly at /three
    When clients post to /one continuously
    And the third party was called 100 times
    And dispatch is killed
    And the clients stop
    And dispatch is started again
    Then every accepted request reaches the third party
    And every accepted request is recorded as delivered

  Scenario: Ingest is stopped under load
    Given ingest is running
    And dispatch is running
    When clients post to /one continuously
    And 100 of their requests are accepted
    And ingest is stopped
    Then it exits successfully
    When the clients stop
    Then nothing waits in the outbox
    When ingest is started again
    Then every accepted request reaches the third party exactly once
    And every accepted request is recorded as delivered

  Scenario: Dispatch is stopped under load
    Given ingest is running
    And dispatch is running
    And the third party answers slowly at /three
    When clients post to /one continuously
    And the third party was called 100 times
    And dispatch is stopped
    Then it exits successfully
    When the clients stop
    And dispatch is started again
    Then every accepted request reaches the third party exactly once
    And every accepted request is recorded as delivered
