//! One end on the peer's Rust crate; speaks what `bench/compare/ends.py` describes.
//!
//! Requests one after the other are made by the main task, on a thread of its own as in the
//! crate's published benchmarks, or with `"how": "task"` by a task among the others.

use btlightning::{
    AsyncSynapseHandler, LightningClient, LightningServer, LightningServerConfig, QuicAxonInfo,
    QuicRequest, Sr25519Signer,
};
use rmpv::Value;
use serde_json::{json, Value as Json};
use std::collections::HashMap;
use std::io::{BufRead, Write};
use std::sync::Arc;
use std::time::{Duration, Instant};

const MINER: &str = "5CcyqxXnJucaCnQQvvUg5EPzj1uoNAxACZvzArHw5aVDvgNH";
const VALIDATOR: &str = "5CfCr47V5Dte6bwxNBE8K9oNnQd9fiay6aDEEkgYtFv7w4Fq";
const TIMEOUT: Duration = Duration::from_secs(60);
const WARM_UP: usize = 50;

struct Echo;

#[async_trait::async_trait]
impl AsyncSynapseHandler for Echo {
    async fn handle(
        &self,
        _synapse_type: &str,
        data: HashMap<String, Value>,
    ) -> btlightning::Result<HashMap<String, Value>> {
        Ok(data)
    }
}

fn request(size: usize) -> QuicRequest {
    let payload = Value::Binary(vec![0x42; size]);
    QuicRequest::new("echo".into(), HashMap::from([("payload".to_string(), payload)]))
}

fn processor_time() -> f64 {
    // Filled in by the system.
    let mut used: libc::rusage = unsafe { std::mem::zeroed() };
    unsafe { libc::getrusage(libc::RUSAGE_SELF, &mut used) };
    let seconds = |t: libc::timeval| t.tv_sec as f64 + t.tv_usec as f64 / 1e6;
    seconds(used.ru_utime) + seconds(used.ru_stime)
}

async fn serve(port: u16) -> LightningServer {
    let config = LightningServerConfig::builder()
        .max_handshake_attempts_per_minute(1_000_000)
        .build()
        .expect("config");
    let mut server =
        LightningServer::with_config(MINER.into(), "127.0.0.1".into(), port, config).expect("server");
    server.set_miner_keypair([1; 32]);
    server
        .register_async_synapse_handler("echo".into(), Arc::new(Echo))
        .await
        .expect("handler");
    server.start().await.expect("start");
    server
}

async fn dial(axon: &QuicAxonInfo) -> LightningClient {
    let mut client = LightningClient::new(VALIDATOR.into());
    client.set_signer(Box::new(Sr25519Signer::from_seed([2; 32])));
    client.initialize_connections(vec![axon.clone()]).await.expect("connect");
    client
}

async fn ask(client: &LightningClient, axon: &QuicAxonInfo, size: usize) {
    let answer = client
        .query_axon_with_timeout(axon.clone(), request(size), TIMEOUT)
        .await
        .expect("answer");
    assert!(answer.success);
}

async fn latency(
    client: &LightningClient,
    axon: &QuicAxonInfo,
    size: usize,
    count: usize,
) -> Vec<f64> {
    let mut seconds = Vec::new();
    for _ in 0..count {
        let start = Instant::now();
        ask(client, axon, size).await;
        seconds.push(start.elapsed().as_secs_f64());
    }
    seconds
}

async fn measure(client: &Arc<LightningClient>, axon: &QuicAxonInfo, asked: &Json) -> Json {
    let number = |name: &str| asked[name].as_u64().unwrap_or(0) as usize;
    let (size, count) = (number("size"), number("count"));
    match asked["op"].as_str().unwrap_or("") {
        "setup" => {
            let mut seconds = Vec::new();
            for _ in 0..count {
                let start = Instant::now();
                let client = dial(axon).await;
                ask(&client, axon, 256).await;
                seconds.push(start.elapsed().as_secs_f64());
                let _ = client.close_all_connections().await;
            }
            json!({ "seconds": seconds })
        }
        "latency" if asked["how"] == "task" => {
            let (client, axon) = (client.clone(), axon.clone());
            let task = tokio::spawn(async move { latency(&client, &axon, size, count).await });
            json!({ "seconds": task.await.expect("task") })
        }
        "latency" => json!({ "seconds": latency(client, axon, size, count).await }),
        "throughput" => {
            let callers = number("callers");
            let start = Instant::now();
            let tasks = (0..callers).map(|_| {
                let (client, axon) = (client.clone(), axon.clone());
                tokio::spawn(async move {
                    for _ in 0..count / callers {
                        ask(&client, &axon, size).await;
                    }
                })
            });
            futures::future::join_all(tasks).await;
            let done = (count / callers * callers) as f64;
            json!({ "elapsed": start.elapsed().as_secs_f64() * count as f64 / done })
        }
        _ => json!({}),
    }
}

#[tokio::main]
async fn main() {
    let arguments: Vec<String> = std::env::args().collect();
    let role = arguments[1].as_str();
    let port: u16 = arguments[2].parse().expect("port");
    if role != "client" {
        let server = serve(port).await;
        tokio::spawn(async move { server.serve_forever().await });
    }
    let axon = QuicAxonInfo::new(MINER.into(), "127.0.0.1".into(), port, 4);
    let mut client = None;
    if role != "server" {
        let made = Arc::new(dial(&axon).await);
        for _ in 0..WARM_UP {
            ask(&made, &axon, 256).await;
        }
        client = Some(made);
    }
    println!("ready");
    let (lines, mut asked) = tokio::sync::mpsc::channel::<String>(1);
    std::thread::spawn(move || {
        for line in std::io::stdin().lock().lines().map_while(Result::ok) {
            if lines.blocking_send(line).is_err() {
                return;
            }
        }
    });
    while let Some(line) = asked.recv().await {
        let wanted: Json = serde_json::from_str(&line).expect("JSON");
        let before = processor_time();
        let mut answer = match &client {
            Some(client) => measure(client, &axon, &wanted).await,
            None => json!({}),
        };
        let cpu = processor_time();
        let is_usage = wanted["op"] == "usage";
        answer["cpu"] = json!(if is_usage { cpu } else { cpu - before });
        println!("{answer}");
        std::io::stdout().flush().expect("stdout");
    }
}
