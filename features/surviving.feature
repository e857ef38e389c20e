Feature: Surviving
  Whatever is killed or stopped in between: every request that was accepted is delivered.

  Scenario: Ingest is killed between commit and publication
    Given a broker that may go away
    And ingest is running
    And dispatch is running
    When the broker goes away
    And 20 requests are posted to /one at once
    Then all of them are accepted
    When ingest is killed
    And the broker comes back
    And ingest is started again
    And 20 requests are posted to /one at once
    Then every accepted request reaches the third party
    And every accepted request is known as delivered
    And nothing waits in the outbox

  Scenario: The broker goes away and comes back
    Given a broker that may go away
    And ingest is running
    And dispatch is running
    When the broker goes away
    And 20 requests are posted to /one at once
    And the broker comes back
    And 20 requests are posted to /one at once
    Then every accepted request reaches the third party
    And every accepted request is known as delivered
    And nothing waits in the outbox

  Scenario: Dispatch is killed in the middle of a call
    Given ingest is running
    And dispatch is running
    And the third party never answers at /three
    When a client posts to /one
      """
      {"user_id": "u-1"}
      """
    Then the third party is called at /three with a token that it gave out
    # These are finished and committed; the one above, which came before them, is not.
    When 50 requests are posted to /github at once
    Then 50 of the requests are known as delivered
    When dispatch is killed
    And the third party answers 200 at /three
    And dispatch is started again
    Then every accepted request is known as delivered
    And the third party was called at /three more than once, with the same Idempotency-Key

  Scenario: Ingest is killed under load
    Given ingest is running
    And dispatch is running
    When clients post to /one without a pause
    And 100 of their requests are accepted
    And ingest is killed
    And ingest is started again
    Then every accepted request reaches the third party
    And every accepted request is known as delivered

  Scenario: Dispatch is killed under load
    Given ingest is running
    And dispatch is running
    And the third party takes its time at /three
    When clients post to /one without a pause
    And the third party was called 100 times
    And dispatch is killed
    And the clients stop
    And dispatch is started again
    Then every accepted request reaches the third party
    And every accepted request is known as delivered

  Scenario: Ingest is stopped under load
    Given ingest is running
    And dispatch is running
    When clients post to /one without a pause
    And 100 of their requests are accepted
    And ingest is stopped
    Then it ends well
    When the clients stop
    Then nothing waits in the outbox
    When ingest is started again
    Then every accepted request reaches the third party, once
    And every accepted request is known as delivered

  Scenario: Dispatch is stopped under load
    Given ingest is running
    And dispatch is running
    And the third party takes its time at /three
    When clients post to /one without a pause
    And the third party was called 100 times
    And dispatch is stopped
    Then it ends well
    When the clients stop
    And dispatch is started again
    Then every accepted request reaches the third party, once
    And every accepted request is known as delivered
