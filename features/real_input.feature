@containers @real-input
Feature: Real input
  GitHub's own examples of webhook payloads: every payload of the npm package @octokit/webhooks-examples, for
  github.com and for each GitHub Enterprise Server.

  Scenario: Every payload arrives byte for byte
    Given ingest is running
    And dispatch is running
    When every payload is posted to /github: unchanged, compact, and with altered white space
    Then every posted payload reaches the third party, byte for byte as it was posted
