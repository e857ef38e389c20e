Feature: Starting
  What keeps a service from starting is said at once, all of it, and in words that say what to change.

  Scenario Outline: <service> with a bad configuration names everything that is wrong with it
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
    When <service> is started in vain
    Then it ends with a failure
    And it has said all of
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
  Scenario Outline: <service> on a port that is taken says so in one line
    Given ingest is running
    When <service> is started in vain, on the port of ingest
    Then it ends with a failure
    And one line says that the address of ingest is in use

    Examples:
      | service  |
      | ingest   |
      | dispatch |

  Scenario: Secrets do not show in what is printed
    Given ingest is running
    And dispatch is running
    When a client posts to /one
      """
      {"user_id": "u-1"}
      """
    Then the third party is called at /three with a token that it gave out
    And no secret has been printed
