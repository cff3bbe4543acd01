//! From `[store]` configuration to an object store: which library client, which credentials, which prefix.
//!
//! | url | store | further settings |
//! |---|---|---|
//! | empty | folder `<data dir>/cold` | |
//! | `file:///dir` | that folder | |
//! | `s3://bucket/prefix` | S3 or compatible | `endpoint`, `region`, `AWS_*` environment |
//! | `gs://bucket/prefix` | Google Cloud Storage | `GOOGLE_*` environment |
//! | `az://container/prefix` | Azure Blob Storage | `AZURE_*` environment |

use std::path::{Path, PathBuf};
use std::sync::Arc;

use object_store::aws::AmazonS3Builder;
use object_store::azure::MicrosoftAzureBuilder;
use object_store::gcp::GoogleCloudStorageBuilder;
use object_store::multipart::MultipartStore;
use object_store::path::Path as ObjectPath;
use object_store::prefix::PrefixStore;
use object_store::{ClientOptions, ObjectStore, RetryConfig};
use thermocline_config::StoreConfig;
use url::Url;

use super::{DurableFileSystem, StoreFailure};

/// Folder of the cold tier where no url is set.
const DEFAULT_FOLDER: &str = "cold";
/// What S3-compatible stores that know no regions are told.
const DEFAULT_REGION: &str = "us-east-1";

/// A store and how to name it to people.
pub(super) struct Located {
    pub store: Arc<dyn ObjectStore>,
    pub parts: Option<Arc<dyn MultipartStore>>,
    pub folder: Option<DurableFileSystem>,
    pub url: String,
}

/// A local folder, or what a url says.
enum Place {
    Folder(PathBuf),
    Url(Url),
}

fn place(config: &StoreConfig, data_dir: &Path) -> Result<Place, StoreFailure> {
    if config.url.is_empty() {
        return Ok(Place::Folder(data_dir.join(DEFAULT_FOLDER)));
    }
    let refused = |reason: String| StoreFailure::Url { url: config.url.clone(), reason };
    let url = Url::parse(&config.url).map_err(|error| refused(error.to_string()))?;
    if url.query().is_some() || url.fragment().is_some() || !url.username().is_empty() || url.password().is_some() {
        return Err(refused("credentials, queries and fragments do not belong in it".to_owned()));
    }
    if url.scheme() == "file" {
        return Ok(Place::Folder(url.to_file_path().map_err(|()| refused("not an absolute path".to_owned()))?));
    }
    Ok(Place::Url(url))
}

/// Refuses a local folder that is not there.
pub(super) fn check_folder(config: &StoreConfig, data_dir: &Path) -> Result<(), StoreFailure> {
    match place(config, data_dir)? {
        Place::Folder(path) if !path.is_dir() => Err(StoreFailure::NoFolder(path)),
        _ => Ok(()),
    }
}

/// Makes a local folder that is not there.
pub(super) fn locate(config: &StoreConfig, data_dir: &Path) -> Result<Located, StoreFailure> {
    let refused = |reason: String| StoreFailure::Url { url: config.url.clone(), reason };
    let url = match place(config, data_dir)? {
        Place::Folder(path) => return folder(&path),
        Place::Url(url) => url,
    };
    let bucket = match url.host_str() {
        Some(bucket) if !bucket.is_empty() => bucket,
        _ => return Err(refused("no bucket".to_owned())),
    };
    let prefix = ObjectPath::from_url_path(url.path()).map_err(|error| refused(error.to_string()))?;
    let named = config.url.trim_end_matches('/').to_owned();
    match url.scheme() {
        "s3" | "s3a" => {
            let mut builder = AmazonS3Builder::from_env()
                .with_bucket_name(bucket)
                .with_retry(one_attempt())
                .with_client_options(client(&config.endpoint));
            if !config.endpoint.is_empty() {
                builder = builder.with_endpoint(&config.endpoint).with_virtual_hosted_style_request(false);
            }
            let region_known = ["AWS_REGION", "AWS_DEFAULT_REGION"].iter().any(|name| std::env::var_os(name).is_some());
            match config.region.as_str() {
                "" if !region_known => builder = builder.with_region(DEFAULT_REGION),
                "" => {}
                region => builder = builder.with_region(region),
            }
            Ok(bucketed(builder.build()?, prefix, named))
        }
        "gs" => {
            let builder = GoogleCloudStorageBuilder::from_env()
                .with_bucket_name(bucket)
                .with_retry(one_attempt())
                .with_client_options(client(&config.endpoint));
            Ok(bucketed(builder.build()?, prefix, named))
        }
        "az" | "azure" | "abfs" | "abfss" => {
            let mut builder = MicrosoftAzureBuilder::from_env()
                .with_container_name(bucket)
                .with_retry(one_attempt())
                .with_client_options(client(&config.endpoint));
            if !config.endpoint.is_empty() {
                builder = builder.with_endpoint(config.endpoint.clone());
            }
            Ok(bucketed(builder.build()?, prefix, named))
        }
        scheme => Err(refused(format!("unknown scheme {scheme:?}"))),
    }
}

fn folder(path: &Path) -> Result<Located, StoreFailure> {
    let store = DurableFileSystem::open(path)?;
    let url = store.url();
    Ok(Located { store: Arc::new(store.clone()), parts: None, folder: Some(store), url })
}

fn bucketed<S: ObjectStore + MultipartStore>(store: S, prefix: ObjectPath, url: String) -> Located {
    let store = Arc::new(PrefixStore::new(store, prefix));
    Located { store: store.clone(), parts: Some(store), folder: None, url }
}

/// Retries are ours, see the module documentation of `store`.
fn one_attempt() -> RetryConfig {
    RetryConfig { max_retries: 0, ..RetryConfig::default() }
}

/// Timeouts are ours too; plain HTTP only where the endpoint says so.
fn client(endpoint: &str) -> ClientOptions {
    ClientOptions::new().with_timeout_disabled().with_allow_http(endpoint.starts_with("http://"))
}
