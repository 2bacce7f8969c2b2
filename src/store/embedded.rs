//! stub
#![allow(missing_docs)]
pub struct EmbeddedStore;
impl EmbeddedStore { pub fn open(_: &std::path::Path, _: usize) -> Result<Self, super::StoreError> { Err(super::StoreError::Corrupt("stub".into())) } }
#[async_trait::async_trait]
impl super::Store for EmbeddedStore {
    async fn apply(&self, _: crate::lead::Change) -> Result<super::Outcome, super::StoreError> { unimplemented!() }
    async fn read(&self, _: &str, _: Option<u64>) -> Result<Option<super::Read>, super::StoreError> { unimplemented!() }
    async fn is_deleted(&self, _: &str) -> Result<bool, super::StoreError> { unimplemented!() }
    async fn list(&self, _: &super::ListQuery) -> Result<Vec<super::Place>, super::StoreError> { unimplemented!() }
    async fn activities(&self, _: &str, _: Option<&super::ActivityPlace>, _: usize) -> Result<Option<Vec<crate::lead::Activity>>, super::StoreError> { unimplemented!() }
    async fn delete(&self, _: &str) -> Result<bool, super::StoreError> { unimplemented!() }
    fn feed(&self) -> super::FeedReceiver { unimplemented!() }
    async fn check(&self) -> Result<(), super::StoreError> { unimplemented!() }
    fn name(&self) -> &'static str { "embedded" }
}
