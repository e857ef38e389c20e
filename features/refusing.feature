Feature: Refusing a request
  Whoever is refused is told why, in a form that programs understand (RFC 9457).

  Scenario Outline: <what> is refused
    Given ingest is running
    When a client sends <method> <path> as <media type>
      """
      <body>
      """
    Then the answer is <status> with the problem "<problem>"

    Examples:
      | what                      | method | path       | media type       | body      | status | problem                |
      | A body that breaks off    | POST   | /one       | application/json | {"user":  | 400    | not-json               |
      | A body that goes on       | POST   | /one       | application/json | {} {}     | 400    | not-json               |
      | Almost JSON               | POST   | /one       | application/json | {'a': 1,} | 400    | not-json               |
      | An empty body             | POST   | /one       | application/json |           | 400    | not-json               |
      | Plain text                | POST   | /one       | text/plain       | {}        | 415    | unsupported-media-type |
      | A form                    | POST   | /one       | application/x-www-form-urlencoded | a=1 | 415 | unsupported-media-type |
      | A path that is no route's | POST   | /nowhere   | application/json | {}        | 404    | not-found              |
      | A PUT                     | PUT    | /one       | application/json | {}        | 405    | method-not-allowed     |
      | A DELETE                  | DELETE | /one       | application/json | {}        | 405    | method-not-allowed     |
      | An unknown request's id   | GET    | /v1/requests/00000000000000000042 | application/json |  | 404 | request-unknown |
      | What is no request's id   | GET    | /v1/requests/42 | application/json |      | 400    | request-id-invalid     |

  Scenario: A body may have up to one mebibyte
    Given ingest is running
    When a client posts 1048576 bytes to /one
    Then the answer is 201
    When a client posts 1048577 bytes to /one
    Then the answer is 413 with the problem "body-too-large"

  Scenario: A body that breaks the route's schema is refused, with each place
    Given ingest is running
    When a client posts to /orders
      """
      {"order_id": 7, "items": [{"quantity": 2}, {"quantity": "two"}]}
      """
    Then the answer is 422 with the problem "schema-violation"
    And it points at
      | /order_id         |
      | /items/1/quantity |

  Scenario: A body within the route's schema is accepted
    Given ingest is running
    When a client posts to /orders
      """
      {"order_id": "7", "items": [{"quantity": 2}]}
      """
    Then the answer is 201
