Feature: Delivering a request
  An accepted request reaches the third party: transformed, authorised, identifiable and traced.

  Background:
    Given ingest is running
    And dispatch is running

  Scenario: A request is transformed for the third party and authorised with a token
    When a client posts to /one
      """
      {"user_id": "u-1", "prompt": "What is the value of k1?", "data": [{"key": "k1", "value": "15"}]}
      """
    Then the third party is called at /three with a token that it issued
    And the call's body contains the request's id, its metadata, and as "one_request"
      """
      {"user_id": "u-1", "prompt": "What is the value of k1?", "data": [{"key": "k1", "value": "15"}]}
      """
    And the call's header "language" is "en"
    And the call's header "content-type" is "application/json"
    And the call's Idempotency-Key is the request's id
    And the delivery to "three" is delivered, in one attempt that was answered 200

  Scenario: The client's trace reaches the third party
    When a client with the trace 4bf92f3577b34da6a3ce929d0e0e4736 posts to /one
      """
      {"user_id": "u-1"}
      """
    Then the third party is called at /three with a token that it issued
    And the call continues the trace 4bf92f3577b34da6a3ce929d0e0e4736
    And the attempt at "three" belongs to the trace 4bf92f3577b34da6a3ce929d0e0e4736

  Scenario: Two hundred requests share one token
    When 200 requests are posted to /one concurrently
    Then every accepted request reaches the third party exactly once
    And the third party was asked for 1 token

  Scenario Outline: Without a filter, <what> arrives byte for byte
    When a client sends POST /github as <media type>
      """
      <body>
      """
    Then the third party is called at /receiver, with the body byte for byte as it was posted
    And the call's header "content-type" is "<media type>"

    Examples:
      | what                  | media type                      | body                              |
      | white space           | application/json                | { "a" :\n\n  [ 1 ,2 ]  }           |
      | a repeated key        | application/json                | {"a":1,"a":2,"b":3,"a":4}         |
      | the order of keys     | application/json                | {"z":1,"a":2,"M":3}               |
      | an unusual number     | application/json                | [1.0,-0,0.10,1E+2,123456789012345678901234567890.5] |
      | a huge number         | application/json                | [1e400,-1e-400]                   |
      | an escaped character  | application/json                | ["\\u0041\\/\\ud83d\\ude00 é 😀"] |
      | another JSON type     | application/vnd.api+json        | {"data":[]}                       |
      | a charset parameter   | application/json; charset=UTF-8 | {}                                |

  Scenario: A body that is not JSON arrives byte for byte, with its media type, at every attempt
    Given the third party answers 503, 200 in turn at /flaky
    When a client posts the bytes "89 50 4e 47 0d 0a 1a 0a 00 ff" to /files as image/png
    Then the request is known with the route "files" and the media type "image/png"
    And the delivery to "flaky" is delivered, after attempts that were answered 503, 200
    And each call at /flaky has the body byte for byte as it was posted, and the media type "image/png"

  Scenario: A request is produced to a Kafka topic, from which another route adopts it
    When a client with the trace 5bf92f3577b34da6a3ce929d0e0e4735 posts to /archived
      """
      { "user_id":   "u-3" }
      """
    Then the topic of "copied" receives a record of the request, byte for byte as it was posted
    And the record has the headers
      | ce_specversion | 1.0              |
      | ce_type        | archived         |
      | content-type   | application/json |
    And the record's key is the request's id
    And the record continues the trace 5bf92f3577b34da6a3ce929d0e0e4735
    And the delivery to "archive" is delivered, and says where its record is stored
    And the third party is called at /receiver, with the body byte for byte as it was posted
    And the call continues the trace 5bf92f3577b34da6a3ce929d0e0e4735
