@processes
Feature: Tracing a request
  One trace shows the path of a request from the client to the third party, and log lines link to it.

  Background:
    Given a collector that receives the telemetry of the services
    And ingest is running
    And dispatch is running

  Scenario: One trace from client to third party
    When a client with the trace 4bf92f3577b34da6a3ce929d0e0e4736 posts to /one, with the headers
      | tracestate | vendor=one,other=two |
      | baggage    | user=me              |
    Then the delivery to "three" is delivered, in one attempt that was answered 200
    And the attempt at "three" belongs to the trace 4bf92f3577b34da6a3ce929d0e0e4736
    And the trace 4bf92f3577b34da6a3ce929d0e0e4736 has exactly these spans
      | span          | kind     | parent           | service              |
      | POST /one     | server   | b7ad6b7169203331 | throughline-ingest   |
      | send {one}    | producer | POST /one        | throughline-ingest   |
      | process {one} | consumer | send {one}       | throughline-dispatch |
      | POST /token   | client   | process {one}    | throughline-dispatch |
      | POST /three   | client   | process {one}    | throughline-dispatch |
    And none of them failed
    And "process {one}" is linked to "send {one}"
    And they have the attributes
      | span          | attribute                  | value     |
      | POST /one     | http.request.method        | POST      |
      | POST /one     | http.route                 | /one      |
      | POST /one     | url.path                   | /one      |
      | POST /one     | url.scheme                 | http      |
      | POST /one     | http.response.status_code  | 201       |
      | POST /one     | throughline.request.id     | {id}      |
      | send {one}    | messaging.system           | kafka     |
      | send {one}    | messaging.operation.name   | send      |
      | send {one}    | messaging.operation.type   | send      |
      | send {one}    | messaging.destination.name | {one}     |
      | send {one}    | messaging.kafka.offset     | 0         |
      | send {one}    | messaging.message.id       | {id}      |
      | process {one} | messaging.system           | kafka     |
      | process {one} | messaging.operation.name   | process   |
      | process {one} | messaging.operation.type   | process   |
      | process {one} | messaging.destination.name | {one}     |
      | process {one} | messaging.kafka.offset     | 0         |
      | process {one} | throughline.request.id     | {id}      |
      | process {one} | throughline.route          | one       |
      | POST /token   | http.request.method        | POST      |
      | POST /token   | server.address             | 127.0.0.1 |
      | POST /token   | http.response.status_code  | 200       |
      | POST /three   | http.request.method        | POST      |
      | POST /three   | server.address             | 127.0.0.1 |
      | POST /three   | http.response.status_code  | 200       |
      | POST /three   | throughline.destination    | three     |
      | POST /three   | throughline.request.id     | {id}      |
    And the third party is called at /three with a token that it issued
    And the call is made by the span "POST /three"
    And the call's header "tracestate" is "vendor=one,other=two"
    And the call has no header "baggage"

  Scenario: The commit of a request has its own trace, linked to the request's trace
    When a client with the trace 4bf92f3577b34da6a3ce929d0e0e4736 posts to /one
      """
      {"user_id": "u-1"}
      """
    Then a span "accept requests" outside of the trace 4bf92f3577b34da6a3ce929d0e0e4736 is linked to "POST /one"
    And they have the attributes
      | span            | attribute          | value    |
      | accept requests | db.operation.name  | accept   |
      | accept requests | db.collection.name | requests |

  Scenario: One commit links to all of its requests
    When 50 requests are posted to /one concurrently
    Then each of their traces is linked from the span of its commit

  Scenario: A request whose client disables tracing is not traced
    When a client posts to /one, with the headers
      | traceparent | 00-4bf92f3577b34da6a3ce929d0e0e4736-b7ad6b7169203331-00 |
    Then every accepted request is recorded as delivered
    When a client with the trace 0af7651916cd43dd8448eb211c80319c posts to /one
      """
      {"user_id": "u-1"}
      """
    Then every accepted request is recorded as delivered
    And the trace 0af7651916cd43dd8448eb211c80319c has exactly these spans
      | span          | kind     | parent           | service              |
      | POST /one     | server   | b7ad6b7169203331 | throughline-ingest   |
      | send {one}    | producer | POST /one        | throughline-ingest   |
      | process {one} | consumer | send {one}       | throughline-dispatch |
      | POST /three   | client   | process {one}    | throughline-dispatch |
    And the trace 4bf92f3577b34da6a3ce929d0e0e4736 has no spans

  Scenario: A late retry is linked to the first trace
    Given the third party answers 429, 200 in turn at /flaky, with a Retry-After of 1 s
    When a client with the trace 4bf92f3577b34da6a3ce929d0e0e4736 posts to /flaky
      """
      {"user_id": "u-1"}
      """
    Then the delivery to "flaky" is delivered, after attempts that were answered 429, 200
    And its last attempt has its own trace, linked to the trace 4bf92f3577b34da6a3ce929d0e0e4736

  Scenario: The log record of a failed delivery links to its trace
    Given the third party answers 400 at /flaky
    When a client with the trace 4bf92f3577b34da6a3ce929d0e0e4736 posts to /flaky
      """
      {"user_id": "not-to-be-logged"}
      """
    Then the delivery to "flaky" is dead, with the reason "rejected"
    And one log record reports it, in the span "process {flaky}" of the trace 4bf92f3577b34da6a3ce929d0e0e4736, with
      | destination | flaky        |
      | outcome     | dead         |
      | reason      | rejected     |
      | error_class | client_error |
      | status      | 400          |
    And no exported telemetry contains "not-to-be-logged", a token or a secret
