//! Our own scaler is one that KEDA can work with.

use std::io;
use std::sync::{Arc, Mutex};
use std::time::Duration;

use async_trait::async_trait;
use ebb_queue::memory::MemoryQueue;
use ebb_queue::{Backlog, Behavior, Broker, Job, OpenOptions, QueueUrl, Source, Timestamp};
use ebb_scaler::conformance::{Hand, RULES, Report, Verdict, examine};
use ebb_scaler::{Connect, Scaler, ScalerArgs};
use tokio::task::JoinHandle;
use tokio_util::sync::CancellationToken;

use crate::{named, plan, tried};

struct Memory(MemoryQueue);

#[async_trait]
impl Connect for Memory {
    async fn connect(
        &self,
        _url: &QueueUrl,
        _source: &Source,
    ) -> ebb_queue::Result<Arc<dyn Backlog>> {
        Ok(Arc::new(self.0.clone()))
    }
}

struct Ours {
    stop: CancellationToken,
    served: Mutex<JoinHandle<anyhow::Result<()>>>,
}

impl Hand for Ours {
    fn stop(&self) -> io::Result<()> {
        self.stop.cancel();
        Ok(())
    }

    fn gone(&self) -> bool {
        self.served.lock().unwrap().is_finished()
    }
}

#[tokio::test(flavor = "multi_thread")]
async fn our_own_scaler_passes_every_rule() {
    let report = tried(&[], report_on_ours).await;
    assert_eq!(named(&report, Verdict::Failed), Vec::<&str>::new(), "{report:#?}");
    assert_eq!(report.passed, RULES.len(), "{report:#?}");
}

async fn report_on_ours() -> Report {
    let queue = MemoryQueue::new(&Behavior::default(), OpenOptions::default());
    queue.publish(vec![Job::new("{}", Timestamp::now())]).await.unwrap();
    let args = ScalerArgs {
        queue: Some(QueueUrl::sqlite("/nowhere")),
        listen: ([127, 0, 0, 1], 0).into(),
        http_listen: None,
        grace: Duration::from_secs(30),
        ..ScalerArgs::default()
    };
    let scaler = Scaler::bind_with(args, Arc::new(Memory(queue))).await.unwrap();
    let mut plan = plan(&scaler.local_addr().unwrap());
    plan.streams = 500;
    plan.metadata.insert("jobsPerReplica".to_owned(), "2.5".to_owned());
    let stop = CancellationToken::new();
    let served = Mutex::new(tokio::spawn(scaler.serve(stop.clone())));
    let ours = Ours { stop, served };

    examine(&plan, Some(&ours as &dyn Hand)).await.unwrap()
}
