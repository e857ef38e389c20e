Feature: Dead letters
  Deliveries that ended without success are kept as dead letters, which operators can list, replay and purge.

  Background:
    Given ingest is running
    And dispatch is running
    And the third party answers 400 at /flaky
    When 3 requests are posted to /flaky concurrently
    Then 3 dead letters are listed for the destination "flaky"

  Scenario: All dead letters of a destination are replayed after it has recovered
    Given the third party answers 200 at /flaky
    When the dead letters of the destination "flaky" are replayed
    Then every accepted request is recorded as delivered
    And 0 dead letters are listed for the destination "flaky"
    And the third party was called 6 times in total

  Scenario: A replay continues after ingest was killed
    Given the third party answers 200 at /flaky
    When the dead letters of the destination "flaky" are replayed, one every two seconds
    Then at least 1 of the requests are recorded as delivered
    When ingest is killed
    And ingest is started again
    Then every accepted request is recorded as delivered

  Scenario: Dead letters are purged
    When the dead letters of the destination "flaky" are purged
    Then 0 dead letters are listed for the destination "flaky"
