//! The device's thread with echoes on it.

use ebb_model::InferErrorKind;
use ebb_model::echo::{Echo, EchoInput};
use futures::FutureExt;

use super::*;

fn input(json: &str) -> EchoInput {
    serde_json::from_str(json).unwrap()
}

fn echo() -> Device<EchoInput, String> {
    Device::thread(|phases| Ok(phases.time("weights", Echo::new))).unwrap()
}

async fn run(device: &Device<EchoInput, String>, json: &str) -> Option<Answer> {
    let batch: Vec<Cargo> = vec![Box::new(input(json))];
    device.way.submit(0, batch, Size::ONE, Begun::No).await.ok()
}

/// What came out, item by item.
fn texts(ran: Option<Answer>) -> Vec<String> {
    let results = ran.unwrap().results.unwrap().into_iter();
    results.map(|one| *one.unwrap().downcast().unwrap()).collect()
}

fn batch(texts: &[&str]) -> Vec<Cargo> {
    texts.iter().map(|text| Box::new(EchoInput::new(*text)) as Cargo).collect()
}

#[tokio::test]
async fn a_batch_goes_in_and_comes_back_with_its_results() {
    let device = echo();
    assert_eq!(device.way.ready().await.unwrap()[0].0, "weights");
    let batch = batch(&["a", "b"]);
    let answer = device.way.submit(0, batch, Size::ONE, Begun::No).await.unwrap();
    assert_eq!(answer.inputs.len(), 2);
    assert_eq!(texts(Some(answer)), ["a", "b"]);
    assert_eq!(device.way.load().get(), Load::default());
}

#[tokio::test]
async fn a_panic_is_a_failed_batch_and_a_model_as_good_as_new() {
    let device = Device::thread(|_| Ok(Echo::new())).unwrap();
    let ran = run(&device, r#"{"input": "", "panic": true}"#).await.unwrap();
    let error = ran.results.unwrap_err();
    assert_eq!(error.kind(), InferErrorKind::Batch);
    assert!(error.to_string().contains("an item asked for a panic"), "{error}");
    assert_eq!(texts(run(&device, r#"{"input": "a"}"#).await), ["a"]);
}

/// A model that panics where it is asked to, when it is dropped or looked at too.
struct Brittle {
    has_layout: bool,
}

impl Model for Brittle {
    type Input = String;
    type Output = String;

    fn layout(&self) -> Layout {
        assert!(self.has_layout, "no layout here");
        Layout::default()
    }

    fn infer(&mut self, batch: &[String]) -> Result<Vec<Result<String, ItemError>>, InferError> {
        assert_ne!(batch, ["panic"], "a batch of this kind");
        Ok(batch.iter().cloned().map(Ok).collect())
    }
}

impl Drop for Brittle {
    fn drop(&mut self) {
        assert!(!self.has_layout, "its memory cannot be freed");
    }
}

#[tokio::test]
async fn a_model_that_panics_when_it_is_dropped_is_replaced_all_the_same() {
    let device = Device::thread(|_| Ok(Brittle { has_layout: true })).unwrap();
    let run = async |text: &str| {
        let batch: Vec<Cargo> = vec![Box::new(text.to_owned())];
        device.way.submit(0, batch, Size::ONE, Begun::No).await.ok()
    };
    assert!(run("panic").await.unwrap().results.is_err());
    assert_eq!(texts(run("a").await), ["a"]);
}

#[tokio::test]
async fn a_device_whose_thread_panics_is_lost() {
    let device = Device::thread(|_| Ok(Brittle { has_layout: false })).unwrap();
    assert_eq!(device.way.ready().await, Err("its thread panicked".to_owned()));
    let answer = device.way.submit(0, vec![], Size::ONE, Begun::No);
    assert!(answer.await.is_err());
}

#[tokio::test]
async fn a_model_that_cannot_be_built_says_why() {
    let device = Device::<EchoInput, String>::thread::<Echo, _>(|_| Err("no weights here".into()));
    assert_eq!(device.unwrap().way.ready().await, Err("no weights here".to_owned()));
    let device = Device::<EchoInput, String>::thread::<Echo, _>(|_| panic!("bad weights"));
    assert_eq!(device.unwrap().way.ready().await, Err("panic: bad weights".to_owned()));
}

#[tokio::test]
async fn a_device_that_keeps_failing_is_given_up() {
    let device = echo();
    for _ in 0..3 {
        let ran = run(&device, r#"{"input": "", "lose_device": true}"#).await.unwrap();
        assert_eq!(ran.results.unwrap_err().kind(), InferErrorKind::Device);
    }
    assert!(device.way.ready().await.unwrap_err().contains("3 times in a row"));
    let answer = device.way.submit(0, batch(&[""]), Size::ONE, Begun::No);
    assert!(answer.await.is_err(), "nobody is there");
}

#[tokio::test]
async fn a_batch_before_a_model_that_cannot_be_built_again_was_never_begun() {
    let mut models = vec![Echo::new()];
    let device = Device::thread(move |_| models.pop().ok_or_else(|| "no more".into())).unwrap();
    assert!(run(&device, r#"{"input": "", "panic": true}"#).await.is_some());
    assert!(run(&device, r#"{"input": "a"}"#).await.is_none());
    assert_eq!(device.way.ready().await, Err("no more".to_owned()));
}

#[tokio::test]
async fn a_draining_device_finishes_only_what_it_began() {
    let device = echo();
    device.way.ready().await.unwrap();
    device.way.close(Door::Draining);
    device.way.admit();
    assert!(run(&device, r#"{"input": "a"}"#).await.is_none());
    let answer = device.way.submit(0, batch(&["a"]), Size::ONE, Begun::Yes).await.unwrap();
    assert_eq!(texts(Some(answer)), ["a"]);
}

/// A model that waits for a word before it answers.
struct Waiting(mpsc::Receiver<()>);

impl Model for Waiting {
    type Input = String;
    type Output = String;

    fn infer(&mut self, batch: &[String]) -> Result<Vec<Result<String, ItemError>>, InferError> {
        self.0.blocking_recv();
        Ok(batch.iter().cloned().map(Ok).collect())
    }
}

#[tokio::test]
async fn what_has_not_begun_comes_back_at_once_from_a_device_that_drains_or_is_wedged() {
    let (go, word) = mpsc::channel(1);
    let mut words = vec![word];
    let device = Device::thread(move |_| Ok(Waiting(words.remove(0)))).unwrap().way;
    let submit = |text: &str, begun| {
        device.submit(0, vec![Box::new(text.to_owned()) as Cargo], Size::ONE, begun)
    };
    let first = submit("first", Begun::No);
    device.load().until(|load| load.running.is_some()).await;
    let again = submit("again", Begun::Yes);
    let next = submit("next", Begun::No);
    assert_eq!(device.load().get().queued, 2);
    // The thread of the device is in its first batch all the time.
    device.close(Door::Wedged);
    assert!(next.await.is_err());
    assert!(submit("behind a wedge", Begun::No).await.is_err());
    device.admit();
    let after = submit("after it", Begun::No);
    assert_eq!(device.load().get().queued, 2);
    device.close(Door::Draining);
    assert!(after.await.is_err());
    assert_eq!(device.load().get().queued, 1, "what had begun stays");
    for answer in [first, again] {
        go.send(()).await.unwrap();
        assert!(answer.await.unwrap().results.is_ok());
    }
    assert_eq!(device.load().get(), Load::default());
}

/// A device in its first batch, which waits for a word.
async fn at_work() -> (mpsc::Sender<()>, DeviceWay, oneshot::Receiver<Answer>) {
    let (go, word) = mpsc::channel(1);
    let mut words = vec![word];
    let device = Device::thread(move |_| Ok(Waiting(words.remove(0)))).unwrap().way;
    let first = turn(&device, Begun::No);
    device.load().until(|load| load.running.is_some()).await;
    (go, device, first)
}

fn turn(device: &DeviceWay, begun: Begun) -> oneshot::Receiver<Answer> {
    device.submit(0, vec![Box::new("a".to_owned()) as Cargo], Size::ONE, begun)
}

#[tokio::test]
async fn what_is_between_two_turns_comes_back_when_turns_end_or_a_wedge_meets_a_drain() {
    for doors in [
        [Door::Draining, Door::Leaving],
        [Door::Draining, Door::Wedged],
        [Door::Wedged, Door::Draining],
    ] {
        let (go, device, first) = at_work().await;
        let (between, again) = (turn(&device, Begun::Between), turn(&device, Begun::Yes));
        doors.into_iter().for_each(|door| device.close(door));
        for answer in [between, turn(&device, Begun::Between)] {
            assert!(answer.now_or_never().is_some_and(|came| came.is_err()), "{doors:?}");
        }
        for answer in [first, again] {
            go.send(()).await.unwrap();
            assert!(answer.await.unwrap().results.is_ok(), "{doors:?}");
        }
    }
}

#[tokio::test]
async fn a_wedge_that_is_over_lets_a_device_that_drains_go_on_with_turns_until_these_end() {
    for doors in [[Door::Draining, Door::Wedged], [Door::Wedged, Door::Draining]] {
        let (go, device, first) = at_work().await;
        doors.into_iter().for_each(|door| device.close(door));
        device.admit();
        let (fresh, between) = (turn(&device, Begun::No), turn(&device, Begun::Between));
        assert!(fresh.await.is_err(), "it drains still: {doors:?}");
        for answer in [first, between] {
            go.send(()).await.unwrap();
            assert!(answer.await.expect("it runs").results.is_ok(), "{doors:?}");
        }
        device.close(Door::Leaving);
        device.close(Door::Wedged);
        device.admit();
        assert!(turn(&device, Begun::Between).await.is_err(), "turns are over: {doors:?}");
    }
}

#[tokio::test]
async fn a_batch_that_waits_for_its_model_to_be_loaded_again_comes_back_at_once() {
    let (go, mut word) = mpsc::channel::<()>(1);
    let mut n_built = 0;
    let device = Device::thread(move |_| {
        n_built += 1;
        if n_built > 1 {
            word.blocking_recv();
        }
        Ok(Echo::new())
    })
    .unwrap();
    assert!(run(&device, r#"{"input": "", "panic": true}"#).await.unwrap().results.is_err());
    let answer = device.way.submit(0, batch(&["a"]), Size::ONE, Begun::No);
    let again = device.way.submit(0, batch(&["b"]), Size::ONE, Begun::Yes);
    let load = device.way.load().until(|load| load.loading.is_some()).await;
    assert_eq!((load.running, load.queued), (None, 2));
    device.way.close(Door::Draining);
    assert!(answer.await.is_err() && again.await.is_err(), "their model is being loaded");
    let later = device.way.submit(0, batch(&["c"]), Size::ONE, Begun::Yes);
    assert!(later.await.is_err(), "it still is");
    go.send(()).await.unwrap();
    device.way.load().until(|load| load.loading.is_none()).await;
    let begun = |json: &str| {
        device.way.submit(0, vec![Box::new(input(json)) as Cargo], Size::ONE, Begun::Yes)
    };
    let [last, next] = [r#"{"input": "", "panic": true}"#, r#"{"input": "a"}"#].map(begun);
    assert!(last.await.unwrap().results.is_err(), "there is a model for what had begun");
    assert!(next.await.is_err(), "none is loaded any more");
    device.way.load().until(|load| *load == Load::default()).await;
}

#[tokio::test]
async fn a_batch_runs_or_comes_back_and_never_both() {
    for _ in 0..100 {
        let device = echo();
        device.way.ready().await.unwrap();
        let submit = |_| device.way.submit(0, batch(&["a"]), Size::ONE, Begun::No);
        let answers: Vec<_> = (0..8).map(submit).collect();
        // The device's thread is taking them at this moment.
        device.way.close(Door::Draining);
        assert_eq!(device.way.load().get().queued, 0);
        let mut have_run = Vec::new();
        for answer in answers {
            have_run.push(answer.await.is_ok());
        }
        assert!(have_run.is_sorted_by(|earlier, later| earlier >= later), "{have_run:?}");
    }
}

/// A model that counts: another type than an echo's.
struct Length(u32);

impl Model for Length {
    type Input = String;
    type Output = u32;

    fn infer(&mut self, batch: &[String]) -> Result<Vec<Result<u32, ItemError>>, InferError> {
        self.0 += 1;
        let length = |text: &String| Ok(text.len() as u32 * 100 + self.0);
        Ok(batch.iter().map(length).collect())
    }
}

#[tokio::test]
async fn two_models_share_a_device_and_a_panic_of_one_leaves_the_other_as_it_was() {
    let mut builder = DeviceBuilder::default();
    let echo = builder.add(|phases| Ok(phases.time("echo weights", Echo::new)));
    let lengths = builder.add(|phases| Ok(phases.time("length weights", || Length(0))));
    builder.start().unwrap();
    let phases = echo.way.ready().await.unwrap();
    let names: Vec<_> = phases.iter().map(|(name, _)| name.as_str()).collect();
    assert_eq!(names, ["echo weights", "length weights"]);
    assert!(echo.way.is_beside(&lengths.way));

    let count = async |text: &str| {
        let batch: Vec<Cargo> = vec![Box::new(text.to_owned())];
        let answer = lengths.way.submit(1, batch, Size::ONE, Begun::No).await.unwrap();
        *answer.results.unwrap().remove(0).unwrap().downcast::<u32>().unwrap()
    };
    assert_eq!(count("four").await, 401);
    assert!(run(&echo, r#"{"input": "", "panic": true}"#).await.unwrap().results.is_err());
    assert_eq!(texts(run(&echo, r#"{"input": "a"}"#).await), ["a"]);
    assert_eq!(count("four").await, 402, "it was not built again");
    // The device is of both: what was on it is not to be trusted.
    assert!(run(&echo, r#"{"input": "", "lose_device": true}"#).await.unwrap().results.is_err());
    assert_eq!(count("four").await, 401, "it was built again");
}
