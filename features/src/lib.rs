//! The acceptance tests of the project, in Gherkin, and its fault suite.
//!
//! What Throughline promises stands in the `.feature` files beside this crate, one idea a file, in words
//! that need no knowledge of the code. The test binary `acceptance` takes them at their word: it starts
//! the real programs as child processes, calls them as clients do, and kills them as machines do.
//!
//! ```text
//! cargo test --workspace --test acceptance                              # in all environments
//! cargo test --workspace --test acceptance -- --environment embedded    # in one
//! cargo test --workspace --test acceptance -- --name 'is killed'        # some of the scenarios
//! RUST_LOG=debug cargo test --workspace --test acceptance               # passed on to the programs
//! ```
//!
//! Each scenario runs in two environments that differ only in their parts: `embedded` (`SQLite`,
//! librdkafka's mock cluster) runs everywhere, `containers` (PostgreSQL, Apache Kafka) wherever a Docker
//! engine answers. With `REQUIRE_CONTAINERS=1`, as in CI, what cannot run has failed.
//!
//! The test binary `faults` (`make test-faults`) goes further: real Kafka and PostgreSQL and two replicas of
//! each service are killed, frozen and starved under load, and so is the third party; at the end what
//! clients were answered, what the third party received and what the database says must agree.
