@containers @real-input
Feature: Real input
  GitHub's own examples of what its webhooks send: every payload of the npm
  package @octokit/webhooks-examples, of github.com and of each GitHub Enterprise Server.

  Scenario: Every payload arrives byte for byte
    Given ingest is running
    And dispatch is running
    When every payload is posted to /github: as it is in the package, compact, and with mangled white space
    Then every posted payload reaches the third party, byte for byte as it was posted
