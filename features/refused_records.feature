@containers
Feature: A broker that refuses a record
  A topic may take no record as large as one of ours. What it refuses ends where people find it, and can be sent
  on its way again; what is told of a delivery is told in fewer words.

  Background:
    Given ingest is running
    And dispatch is running

  Scenario: A request
    Given the topic of "github" takes no more than 2000 bytes at once
    When a client posts 5000 bytes of noise to /github
    Then the answer is 201
    And the delivery to "receiver" is dead, with the reason "unpublishable"
    And there is a dead letter of the request, without its body
    And the record has the headers
      | ce_type            | github        |
      | throughline-reason | unpublishable |
    When the dead letters of the destination "receiver" are replayed
    Then every accepted request is known as delivered

  Scenario: A retry
    Given the topic of retries takes no more than 2000 bytes at once
    And the third party answers 503, 200 in turn at /flaky
    When a client posts 5000 bytes of noise to /flaky
    Then the delivery to "flaky" is dead, with the reason "unpublishable"
    And there is a dead letter of the request, without its body
    And the record has the headers
      | throughline-destination | flaky         |
      | throughline-reason      | unpublishable |
    When the topic of retries takes no more than 1000000 bytes at once
    And the dead letters of the destination "flaky" are replayed
    Then every accepted request is known as delivered

  Scenario: An outcome
    Given the topic of outcomes takes no more than 800 bytes at once
    And the third party answers 400 with 1000 bytes of noise at /flaky
    When a client posts to /flaky
      """
      {"user_id": "u-1"}
      """
    Then the delivery to "flaky" is dead, with the reason "rejected"
    And its last attempt was
      | outcome          | dead |
      | status           | 400  |
      | response_excerpt | null |

  Scenario: A dead letter
    Given the topic of dead letters takes no more than 2000 bytes at once
    And the third party answers 400 at /flaky
    When a client posts 5000 bytes of noise to /flaky
    Then the delivery to "flaky" is dead, with the reason "rejected"
    And there is a dead letter of the request, without its body
    And the record has the headers
      | throughline-destination | flaky    |
      | throughline-reason      | rejected |
      | throughline-attempt     | 1        |
    And the record says that it comes from the topic of "flaky"
