Feature: Explaining a request
  Ingest explains a request in words: its events in order, what each delivery waits for, until when, and what would
  make it continue.

  Background:
    Given ingest is running
    And dispatch is running

  Scenario: A request that failed twice and was delivered
    Given the third party answers 503, 503, 200 in turn at /flaky
    When a client posts to /flaky
      """
      {"user_id": "u-1"}
      """
    Then the request is explained as follows, with … for variable parts
      """
      accepted on route `flaky` by node …: 18 bytes of application/json [trace …]
      flaky: attempt 1, from record …-flaky/…/…, failed after … ms: 503 Service Unavailable (server_error); a retry is scheduled [trace …]
      flaky: attempt 2, from record ….retries/…/…, failed after … ms: 503 Service Unavailable (server_error); a retry is scheduled [trace …]
      flaky: attempt 3, from record ….retries/…/…, was answered with 200 after … ms: delivered [trace …]
      flaky: delivered
      flaky: delivered. The third party accepted it. This is final.
      """

  Scenario: A request that waits for a token endpoint
    Given the third party answers 503 at /token
    When a client posts to /one
      """
      {"user_id": "u-1"}
      """
    Then the request is explained as follows, with … for variable parts
      """
      accepted on route `one` by node …: 18 bytes of application/json [trace …]
      three: pending. It is deferred by `token_unavailable`, which costs no attempt: the token endpoint does not answer. It can continue … Check the token endpoint; dispatch retries every few seconds. It ends dead as `expired` if it is not delivered by … UTC.
      """
