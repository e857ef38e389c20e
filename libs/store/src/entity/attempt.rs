use sea_orm::entity::prelude::*;

#[derive(Clone, Debug, PartialEq, Eq, DeriveEntityModel)]
#[sea_orm(table_name = "attempts")]
pub(crate) struct Model {
    #[sea_orm(primary_key, auto_increment = false)]
    pub(crate) request_id: i64,
    #[sea_orm(primary_key, auto_increment = false)]
    pub(crate) destination: String,
    #[sea_orm(primary_key, auto_increment = false)]
    pub(crate) number: i32,
    #[sea_orm(primary_key, auto_increment = false)]
    pub(crate) started_at: DateTimeUtc,
    pub(crate) duration_ms: i64,
    pub(crate) outcome: String,
    pub(crate) status: Option<i32>,
    pub(crate) error_class: Option<String>,
    pub(crate) error: Option<String>,
    pub(crate) response_excerpt: Option<String>,
    pub(crate) trace_id: Option<String>,
    pub(crate) origin: Option<String>,
}

#[derive(Copy, Clone, Debug, EnumIter, DeriveRelation)]
pub(crate) enum Relation {
    #[sea_orm(
        belongs_to = "super::delivery::Entity",
        from = "(Column::RequestId, Column::Destination)",
        to = "(super::delivery::Column::RequestId, super::delivery::Column::Destination)"
    )]
    Delivery,
}

impl Related<super::delivery::Entity> for Entity {
    fn to() -> RelationDef {
        Relation::Delivery.def()
    }
}

impl ActiveModelBehavior for ActiveModel {}
