Feature: Adopting a foreign record
  Another producer may write directly to a route's topic. Such a record becomes a request like any other.

  Background:
    Given ingest is running
    And dispatch is running

  Scenario: A foreign record reaches the third party
    When another producer writes to the topic of "one"
      """
      {"user_id": "u-9"}
      """
    Then the third party is called at /three with a token that it issued
    And the call's body contains the request's id, its metadata, and as "one_request"
      """
      {"user_id": "u-9"}
      """
    And the request is known with the route "one" and the media type "application/json"
    And the delivery to "three" is delivered, in one attempt that was answered 200

  Scenario: A foreign record keeps its trace
    When another producer writes to the topic of "github", with the trace 7bf92f3577b34da6a3ce929d0e0e4737
      """
      { "user_id":   "u-9" }
      """
    Then the third party is called at /receiver, with the body byte for byte as it was posted
    And the call continues the trace 7bf92f3577b34da6a3ce929d0e0e4737
