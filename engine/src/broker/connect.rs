//! Opening connections to Redis: addresses, credentials, TLS.
//!
//! Not here: what is said on them. Everything runs on a tokio runtime of the caller's.

use std::fmt;
use std::time::Duration;

use redis::aio::{ConnectionLike, MultiplexedConnection};
use redis::cluster::ClusterClientBuilder;
use redis::cluster_async::ClusterConnection;
use redis::{
    AsyncConnectionConfig, Client, Cmd, ConnectionAddr, ConnectionInfo, Pipeline, ProtocolVersion,
    RedisFuture, TlsCertificates, Value,
};

use super::config::RedisConfig;

/// Longest wait for a connection to be made.
pub const CONNECT_TIMEOUT: Duration = Duration::from_secs(2);

/// How to reach a Redis: everything of the configuration, read and checked.
#[derive(Clone)]
pub struct Access {
    seeds: Vec<ConnectionInfo>,
    certificates: Option<TlsCertificates>,
    response_timeout: Duration,
}

impl fmt::Debug for Access {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        let seeds = self.seeds.iter().map(|seed| seed.addr().to_string());
        f.debug_list().entries(seeds).finish()
    }
}

impl Access {
    /// # Errors
    /// A URL, the password file or the CA file is of no use; the text says why.
    pub fn new(config: &RedisConfig) -> Result<Self, String> {
        let read = |path: &std::path::Path| {
            std::fs::read(path).map_err(|error| format!("cannot read {}: {error}", path.display()))
        };
        let password = if config.password_file.as_os_str().is_empty() {
            None
        } else {
            let text = read(&config.password_file)?;
            let text = String::from_utf8_lossy(&text);
            Some(text.lines().next().unwrap_or_default().to_owned())
        };
        let ca = if config.ca_file.as_os_str().is_empty() {
            None
        } else {
            Some(read(&config.ca_file)?)
        };
        // The client library asks for the process's own; another one is there for another library. Fails where one is
        // installed already, which is as well.
        _ = rustls::crypto::aws_lc_rs::default_provider().install_default();
        let mut seeds = Vec::new();
        for url in &config.urls {
            let info = url.parse().map_err(|error| format!("{url}: {error}"))?;
            let mut settings = info
                .redis_settings()
                .clone()
                .set_protocol(ProtocolVersion::RESP3);
            if !config.username.is_empty() {
                settings = settings.set_username(config.username.as_str());
            }
            if let Some(password) = &password {
                settings = settings.set_password(password.as_str());
            }
            seeds.push(info.set_redis_settings(settings));
        }
        Ok(Self {
            seeds,
            certificates: ca.map(|ca| TlsCertificates {
                client_tls: None,
                root_cert: Some(ca),
            }),
            response_timeout: Duration::from_millis(config.publish_timeout_ms),
        })
    }

    /// The addresses of the configuration.
    pub(crate) fn seeds(&self) -> impl Iterator<Item = &ConnectionAddr> {
        self.seeds.iter().map(ConnectionInfo::addr)
    }

    /// An address that a cluster has told, reached as the first of the configuration is.
    pub(super) fn at(&self, host: &str, port: u16) -> ConnectionAddr {
        match self.seeds().next() {
            Some(ConnectionAddr::TcpTls {
                insecure,
                tls_params,
                ..
            }) => ConnectionAddr::TcpTls {
                host: host.to_owned(),
                port,
                insecure: *insecure,
                tls_params: tls_params.clone(),
            },
            _ => ConnectionAddr::Tcp(host.to_owned(), port),
        }
    }

    /// Opens one connection. What the server pushes goes to `pushes`.
    ///
    /// # Errors
    /// There is none within [`CONNECT_TIMEOUT`], or the time that a publisher waits where that is shorter.
    pub async fn open(
        &self,
        addr: &ConnectionAddr,
        pushes: Option<tokio::sync::mpsc::UnboundedSender<redis::PushInfo>>,
    ) -> redis::RedisResult<MultiplexedConnection> {
        let config = match pushes {
            Some(pushes) => AsyncConnectionConfig::new().set_push_sender(pushes),
            None => AsyncConnectionConfig::new(),
        };
        self.open_with(addr, config).await
    }

    /// The same with settings of the caller's; both timeouts are set here.
    ///
    /// # Errors
    /// As of [`Access::open`].
    pub(super) async fn open_with(
        &self,
        addr: &ConnectionAddr,
        config: AsyncConnectionConfig,
    ) -> redis::RedisResult<MultiplexedConnection> {
        let seed = self.seeds.first().ok_or_else(no_url)?;
        let info = seed.clone().set_addr(addr.clone());
        let client = match &self.certificates {
            Some(certificates) => Client::build_with_tls(info, certificates.clone())?,
            None => Client::open(info)?,
        };
        let config = config
            .set_connection_timeout(Some(CONNECT_TIMEOUT.min(self.response_timeout)))
            .set_response_timeout(Some(self.response_timeout));
        client
            .get_multiplexed_async_connection_with_config(&config)
            .await
    }

    /// Opens something to send commands through, whether Redis is one server or a cluster; it does not connect again by
    /// itself where it is one.
    ///
    /// # Errors
    /// No address of the configuration answers.
    pub async fn open_commands(&self) -> redis::RedisResult<Commands> {
        let mut last = None;
        for addr in self.seeds() {
            match self.open(addr, None).await {
                Ok(mut connection) => {
                    return if is_cluster(&mut connection).await? {
                        self.open_cluster().await.map(Commands::Cluster)
                    } else {
                        Ok(Commands::Single(connection))
                    };
                }
                Err(error) => last = Some(error),
            }
        }
        Err(last.unwrap_or_else(no_url))
    }

    async fn open_cluster(&self) -> redis::RedisResult<ClusterConnection> {
        let mut builder = ClusterClientBuilder::new(self.seeds.clone())
            .connection_timeout(CONNECT_TIMEOUT)
            .response_timeout(self.response_timeout)
            .use_protocol(ProtocolVersion::RESP3);
        if let Some(certificates) = &self.certificates {
            builder = builder.certs(certificates.clone());
        }
        builder.build()?.get_async_connection().await
    }
}

fn no_url() -> redis::RedisError {
    redis::RedisError::from((redis::ErrorKind::InvalidClientConfig, "no URL"))
}

/// Whether the server is part of a cluster.
pub(super) async fn is_cluster(connection: &mut MultiplexedConnection) -> redis::RedisResult<bool> {
    let info: String = redis::cmd("INFO")
        .arg("cluster")
        .query_async(connection)
        .await?;
    Ok(info.contains("cluster_enabled:1"))
}

/// A way for commands; clones share it.
#[derive(Clone)]
pub enum Commands {
    Single(MultiplexedConnection),
    Cluster(ClusterConnection),
}

impl fmt::Debug for Commands {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.write_str(match self {
            Self::Single(_) => "Commands::Single",
            Self::Cluster(_) => "Commands::Cluster",
        })
    }
}

impl ConnectionLike for Commands {
    fn req_packed_command<'a>(&'a mut self, cmd: &'a Cmd) -> RedisFuture<'a, Value> {
        match self {
            Self::Single(connection) => connection.req_packed_command(cmd),
            Self::Cluster(connection) => connection.req_packed_command(cmd),
        }
    }

    fn req_packed_commands<'a>(
        &'a mut self,
        cmd: &'a Pipeline,
        offset: usize,
        count: usize,
    ) -> RedisFuture<'a, Vec<Value>> {
        match self {
            Self::Single(connection) => connection.req_packed_commands(cmd, offset, count),
            Self::Cluster(connection) => connection.req_packed_commands(cmd, offset, count),
        }
    }

    fn get_db(&self) -> i64 {
        match self {
            Self::Single(connection) => connection.get_db(),
            Self::Cluster(connection) => connection.get_db(),
        }
    }
}
