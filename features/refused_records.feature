@containers
Feature: A broker that rejects a record
  A record may exceed the size limit of its topic. A rejected request or retry becomes a dead letter that can be
  replayed, and a rejected outcome or dead letter is published in a shorter form.

  Background:
    Given ingest is running
    And dispatch is running

  Scenario: A rejected request becomes a dead letter
    Given the topic of "github" accepts at most 2000 bytes per batch
    When a client posts 5000 random bytes to /github
    Then the answer is 201
    And the delivery to "receiver" is dead, with the reason "unpublishable"
    And there is a dead letter of the request without its body
    And the record has the headers
      | ce_type            | github        |
      | throughline-reason | unpublishable |
    When the dead letters of the destination "receiver" are replayed
    Then every accepted request is recorded as delivered

  Scenario: A rejected retry becomes a dead letter
    Given the topic of retries accepts at most 2000 bytes per batch
    And the third party answers 503, 200 in turn at /flaky
    When a client posts 5000 random bytes to /flaky
    Then the delivery to "flaky" is dead, with the reason "unpublishable"
    And there is a dead letter of the request without its body
    And the record has the headers
      | throughline-destination | flaky         |
      | throughline-reason      | unpublishable |
    When the topic of retries accepts at most 1000000 bytes per batch
    And the dead letters of the destination "flaky" are replayed
    Then every accepted request is recorded as delivered

  Scenario: A rejected outcome is published without details
    Given the topic of outcomes accepts at most 800 bytes per batch
    And the third party answers 400 with 1000 random bytes at /flaky
    When a client posts to /flaky
      """
      {"user_id": "u-1"}
      """
    Then the delivery to "flaky" is dead, with the reason "rejected"
    And its last attempt was
      | outcome          | dead |
      | status           | 400  |
      | response_excerpt | null |

  Scenario: A rejected dead letter is published without its body
    Given the topic of dead letters accepts at most 2000 bytes per batch
    And the third party answers 400 at /flaky
    When a client posts 5000 random bytes to /flaky
    Then the delivery to "flaky" is dead, with the reason "rejected"
    And there is a dead letter of the request without its body
    And the record has the headers
      | throughline-destination | flaky    |
      | throughline-reason      | rejected |
      | throughline-attempt     | 1        |
    And the record names the topic of "flaky" as its origin
