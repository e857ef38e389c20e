//! The acceptance tests of the project, in Gherkin, and its fault suite.
//!
//! The `.feature` files in this folder state the promises of Throughline, one topic per file, without
//! reference to the code. The test binary `acceptance` verifies them: it starts the real programs as child
//! processes, sends requests as clients do, and kills the programs.
//!
//! ```text
//! cargo test --workspace --test acceptance                              # in all environments
//! cargo test --workspace --test acceptance -- --environment embedded    # in one
//! cargo test --workspace --test acceptance -- --name 'is killed'        # some of the scenarios
//! RUST_LOG=debug cargo test --workspace --test acceptance               # passed on to the programs
//! ```
//!
//! Each scenario runs in two environments with different databases and brokers: `embedded` (`SQLite`,
//! librdkafka's mock cluster) runs everywhere, `containers` (PostgreSQL, Apache Kafka) requires a Docker
//! engine. With `REQUIRE_CONTAINERS=1`, as in CI, an environment that cannot run counts as failed.
//!
//! The test binary `faults` (`make test-faults`) goes further: under load, it kills, freezes and starves
//! real Kafka and PostgreSQL, three replicas of each service, and the third party. At the end, the responses
//! to clients, the calls that the third party received and the database must agree.
