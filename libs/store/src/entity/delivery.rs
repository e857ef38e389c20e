use sea_orm::entity::prelude::*;

use crate::deliveries::DeliveryState;

#[derive(Clone, Debug, PartialEq, Eq, DeriveEntityModel)]
#[sea_orm(table_name = "deliveries")]
pub(crate) struct Model {
    #[sea_orm(primary_key, auto_increment = false)]
    pub(crate) request_id: i64,
    #[sea_orm(primary_key, auto_increment = false)]
    pub(crate) destination: String,
    pub(crate) state: DeliveryState,
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
