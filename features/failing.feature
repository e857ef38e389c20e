Feature: A delivery that fails
  A delivery that cannot succeed ends dead, with its reason, in the status of its request and on the dead-letter topic.

  Background:
    Given ingest is running
    And dispatch is running

  Scenario: The third party rejects the request
    Given the third party answers 400 at /three
      """
      {"error": "there is no user u-1"}
      """
    When a client posts to /one
      """
      { "user_id":"u-1" }
      """
    Then the delivery to "three" is dead, with the reason "rejected"
    And its last attempt was
      | number           | 1                                 |
      | outcome          | dead                              |
      | status           | 400                               |
      | error_class      | client_error                      |
      | response_excerpt | {"error": "there is no user u-1"} |
    And there is a dead letter of the request, byte for byte as it was posted
    And the record has the headers
      | ce_type                 | one      |
      | throughline-destination | three    |
      | throughline-reason      | rejected |
    And the record names the topic of "one" as its origin

  Scenario: The filter cannot transform the body
    # The filter of "picky" splits .name, which must be a string.
    When a client posts to /picky
      """
      {"name": 7}
      """
    Then the delivery to "picky" is dead, with the reason "untransformable"
    And no attempt was made
    And there is a dead letter of the request, byte for byte as it was posted
