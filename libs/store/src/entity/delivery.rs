use sea_orm::entity::prelude::*;

use throughline_api::DeliveryState;

#[derive(Clone, Debug, PartialEq, Eq, DeriveEntityModel)]
#[sea_orm(table_name = "deliveries")]
pub(crate) struct Model {
    #[sea_orm(primary_key, auto_increment = false)]
    pub(crate) request_id: i64,
    #[sea_orm(primary_key, auto_increment = false)]
    pub(crate) destination: String,
    pub(crate) state: State,
    pub(crate) attempts: i32,
    pub(crate) counted_attempts: i32,
    pub(crate) window_started_at: DateTimeUtc,
    pub(crate) due_at: Option<DateTimeUtc>,
    pub(crate) published_at: Option<DateTimeUtc>,
    pub(crate) claimed_until: Option<DateTimeUtc>,
    pub(crate) deferred_by: Option<String>,
    pub(crate) ordering_group: Option<String>,
    pub(crate) reported_at: Option<DateTimeUtc>,
    pub(crate) last_status: Option<i32>,
    pub(crate) last_error_class: Option<String>,
    pub(crate) last_error: Option<String>,
    pub(crate) reason: Option<String>,
    pub(crate) updated_at: DateTimeUtc,
}

/// The state, as the database has it.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Hash, EnumIter, DeriveActiveEnum)]
#[sea_orm(rs_type = "String", db_type = "Text", rename_all = "snake_case")]
pub(crate) enum State {
    Pending,
    Retrying,
    Delivered,
    Dead,
    Cancelled,
}

impl From<State> for DeliveryState {
    fn from(state: State) -> Self {
        match state {
            State::Pending => Self::Pending,
            State::Retrying => Self::Retrying,
            State::Delivered => Self::Delivered,
            State::Dead => Self::Dead,
            State::Cancelled => Self::Cancelled,
        }
    }
}

#[derive(Copy, Clone, Debug, EnumIter, DeriveRelation)]
pub(crate) enum Relation {
    #[sea_orm(
        belongs_to = "super::request::Entity",
        from = "Column::RequestId",
        to = "super::request::Column::Id"
    )]
    Request,
    #[sea_orm(has_many = "super::attempt::Entity")]
    Attempts,
}

impl Related<super::request::Entity> for Entity {
    fn to() -> RelationDef {
        Relation::Request.def()
    }
}

impl Related<super::attempt::Entity> for Entity {
    fn to() -> RelationDef {
        Relation::Attempts.def()
    }
}

impl ActiveModelBehavior for ActiveModel {}
