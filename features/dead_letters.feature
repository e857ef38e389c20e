Feature: Dead letters
  What ended without success is kept where operators find it, and can be sent on its way again.

  Background:
    Given ingest is running
    And dispatch is running
    And the third party answers 400 at /flaky
    When 3 requests are posted to /flaky at once
    Then 3 dead letters are listed for the destination "flaky"

  Scenario: All of a destination are replayed once it is mended
    Given the third party answers 200 at /flaky
    When the dead letters of the destination "flaky" are replayed
    Then every accepted request is known as delivered
    And 0 dead letters are listed for the destination "flaky"
    And the third party was called 6 times in all

  Scenario: A replay goes on when ingest was killed in the midst of it
    Given the third party answers 200 at /flaky
    When the dead letters of the destination "flaky" are replayed, one in two seconds
    Then at least 1 of the requests are known as delivered
    When ingest is killed
    And ingest is started again
    Then every accepted request is known as delivered

  Scenario: What nobody needs any more is purged
    When the dead letters of the destination "flaky" are purged
    Then 0 dead letters are listed for the destination "flaky"
