Feature: Refusing a request
  A refused request gets a machine-readable response with the reason (RFC 9457).

  Scenario Outline: <what> is refused
    Given ingest is running
    When a client sends <method> <path> as <media type>
      """
      <body>
      """
    Then the answer is <status> with the problem "<problem>"

    Examples:
      | what                      | method | path       | media type       | body      | status | problem                |
      | A truncated body          | POST   | /one       | application/json | {"user":  | 400    | not-json               |
      | A body with trailing data | POST   | /one       | application/json | {} {}     | 400    | not-json               |
      | Malformed JSON            | POST   | /one       | application/json | {'a': 1,} | 400    | not-json               |
      | An empty body             | POST   | /one       | application/json |           | 400    | not-json               |
      | Plain text                | POST   | /one       | text/plain       | {}        | 415    | unsupported-media-type |
      | A form                    | POST   | /one       | application/x-www-form-urlencoded | a=1 | 415 | unsupported-media-type |
      | A path without a route    | POST   | /nowhere   | application/json | {}        | 404    | not-found              |
      | A PUT                     | PUT    | /one       | application/json | {}        | 405    | method-not-allowed     |
      | A DELETE                  | DELETE | /one       | application/json | {}        | 405    | method-not-allowed     |
      | An unknown request id     | GET    | /v1/requests/00000000000000000042 | application/json |  | 404 | request-unknown |
      | A malformed request id    | GET    | /v1/requests/42 | application/json |      | 400    | request-id-invalid     |

  Scenario: A body is limited to one mebibyte
    Given ingest is running
    When a client posts 1048576 bytes to /one
    Then the answer is 201
    When a client posts 1048577 bytes to /one
    Then the answer is 413 with the problem "body-too-large"

  Scenario: A body that violates the route's schema is refused with the location of each error
    Given ingest is running
    When a client posts to /orders
      """
      {"order_id": 7, "items": [{"quantity": 2}, {"quantity": "two"}]}
      """
    Then the answer is 422 with the problem "schema-violation"
    And its errors point at
      | /order_id         |
      | /items/1/quantity |

  Scenario: A body that matches the route's schema is accepted
    Given ingest is running
    When a client posts to /orders
      """
      {"order_id": "7", "items": [{"quantity": 2}]}
      """
    Then the answer is 201

  Scenario Outline: If clients are configured, <who>
    Given only these clients are configured
      | client   | key                     | routes | manage |
      | shop     | the-key-of-the-shop     | one    | false  |
      | operator | the-key-of-the-operator |        | true   |
    And ingest is running
    When a client with the key "<key>" sends <method> <path>
    Then the answer is <status> with the problem "<problem>"

    Examples:
      | who                                         | key                     | method | path                              | status | problem         |
      | an unknown client may not post              | an-unknown-key          | POST   | /one                              | 401    | unauthorized    |
      | an unknown client may not read a request    | an-unknown-key          | GET    | /v1/requests/00000000000000000042 | 401    | unauthorized    |
      | a client may not use other clients' routes  | the-key-of-the-shop     | POST   | /orders                           | 403    | forbidden       |
      | a client may not use the management API     | the-key-of-the-shop     | GET    | /v1/requests/00000000000000000042 | 403    | forbidden       |
      | an operator may not post                    | the-key-of-the-operator | POST   | /one                              | 403    | forbidden       |
      | an operator may read any request            | the-key-of-the-operator | GET    | /v1/requests/00000000000000000042 | 404    | request-unknown |

  Scenario: If clients are configured, a request with a key is accepted and one without a key is refused
    Given only these clients are configured
      | client | key                 | routes | manage |
      | shop   | the-key-of-the-shop | one    | false  |
    And ingest is running
    When a client with the key "the-key-of-the-shop" sends POST /one
    Then the answer is 201
    When a client posts to /one
      """
      {"user_id": "u-1"}
      """
    Then the answer is 401 with the problem "unauthorized"
    And it requires a bearer token

  Scenario: The rate of a route limits its requests
    Given the route "one" has the rate 2/h
    And ingest is running
    When 2 requests are posted to /one concurrently
    Then all of them are accepted
    When a client posts to /one
      """
      {"user_id": "u-1"}
      """
    Then the answer is 429 with the problem "rate-exceeded"
    And its Retry-After is 1700 to 1800 seconds
