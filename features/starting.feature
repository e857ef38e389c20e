Feature: Starting
  A service that cannot start reports all problems together, each with what to change.

  Scenario Outline: <service> reports every problem of an invalid configuration
    Given this throughline.yaml
      """
      http:
        address: nowhere
        colour: green
      kafka:
        bootstrap_servers: localhost:9092
      routes:
        one:
          path: one
          topic: one
          destinations: [thre]
      destinations:
        three:
          url: http://localhost/three
          filter: "{id: $id, one_request: ."
          oauth2:
            token_url: http://localhost/token
            client_id: me
            client_secret: {env: THROUGHLINE_TEST_NO_SUCH_VARIABLE}
      """
    When <service> tries to start
    Then it exits with an error
    And its output contains all of
      | http.address                              |
      | http.colour                               |
      | routes.one.path                           |
      | routes.one.destinations                   |
      | thre                                      |
      | destinations.three.filter                 |
      | THROUGHLINE_TEST_NO_SUCH_VARIABLE         |

    Examples:
      | service  |
      | ingest   |
      | dispatch |

  @processes
  Scenario Outline: <service> reports a port in use in one line
    Given ingest is running
    When <service> tries to start on the port of ingest
    Then it exits with an error
    And one line of its output says that the address of ingest is in use

    Examples:
      | service  |
      | ingest   |
      | dispatch |

  Scenario: No output contains secrets
    Given ingest is running
    And dispatch is running
    When a client posts to /one
      """
      {"user_id": "u-1"}
      """
    Then the third party is called at /three with a token that it issued
    And no output contains a secret
