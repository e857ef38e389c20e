Feature: Explaining a request
  Whoever asks what became of a request is told its story in words: what happened, in order, and what it waits
  for now, until when, and what would make it move.

  Background:
    Given ingest is running
    And dispatch is running

  Scenario: A request that failed twice and was delivered
    Given the third party answers 503, 503, 200 in turn at /flaky
    When a client posts to /flaky
      """
      {"user_id": "u-1"}
      """
    Then the request explains itself, with … for what differs from time to time
      """
      accepted by the route `flaky`, on node …: 18 bytes of application/json [trace …]
      flaky: attempt 1, by the record …-flaky/…/…, failed after … ms: 503 Service Unavailable (server_error); it is to be made again [trace …]
      flaky: attempt 2, by the record ….retries/…/…, failed after … ms: 503 Service Unavailable (server_error); it is to be made again [trace …]
      flaky: attempt 3, by the record ….retries/…/…, was answered 200 after … ms: delivered [trace …]
      flaky: delivered
      flaky: delivered. The third party has it. This is final.
      """

  Scenario: A request that waits for a token endpoint
    Given the third party answers 503 at /token
    When a client posts to /one
      """
      {"user_id": "u-1"}
      """
    Then the request explains itself, with … for what differs from time to time
      """
      accepted by the route `one`, on node …: 18 bytes of application/json [trace …]
      three: pending. It waits, as `token_unavailable`, which costs no attempt: the token endpoint does not answer. It may go on … See after the token endpoint; it is asked again every few seconds. It ends dead, as `expired`, if it is not delivered by … UTC.
      """
