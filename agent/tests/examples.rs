//! The manifests that users start from are read as they stand.

use std::path::Path;

use sluice_agent::addr::ServiceAddr;
use sluice_agent::table::Catalog;
use sluice_agent::watch::Source;

#[tokio::test]
async fn the_example_folder_makes_a_service_with_its_ready_endpoints() {
    let folder = Path::new(env!("CARGO_MANIFEST_DIR")).join("../manifests/examples");
    let mut source = Source::dir(&folder).expect("the folder");
    let mut catalog = Catalog::new(None);
    catalog.apply(source.next().await);
    assert!(source.problems().is_empty(), "{:?}", source.problems());
    let service = &catalog.table().services[&ServiceAddr::new("10.96.0.10:50051".parse().unwrap())];
    let endpoints: Vec<_> = service.endpoints.iter().map(|endpoint| endpoint.addr.to_string()).collect();
    assert_eq!(endpoints, ["10.244.0.2:50051", "10.244.0.3:50051"]);
}
