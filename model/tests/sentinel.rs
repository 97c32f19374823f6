//! The sentinel: what ships finds anomalies, and training gives the same again.

#![cfg(feature = "cpu")]

use ebb_model::sentinel::{
    Finding, Options, Reading, Sensor, Sentinel, TrainError, Window, generate, read_csv, train,
    write_csv,
};
use ebb_model::{DeviceChoice, Model, ModelInfo, ModelKind, recognise};

fn shipped() -> Sentinel {
    Sentinel::shipped(DeviceChoice::Cpu).expect("it is committed")
}

fn window(readings: &[Reading]) -> Window {
    let of = |sensor: usize| readings.iter().map(|it| it.values[sensor]).collect();
    Window { vibration: of(0), temperature: of(1), pressure: of(2) }
}

fn find(sentinel: &mut Sentinel, batch: &[Window]) -> Vec<Finding> {
    let findings = sentinel.infer(batch).expect("the batch runs");
    findings.into_iter().map(|finding| finding.expect("a sound item")).collect()
}

fn small() -> Options {
    Options { epochs: 2, hidden: 16, code: 4, ..Options::default() }
}

#[test]
fn what_ships_finds_the_anomalies_of_readings_it_has_not_seen() {
    let mut sentinel = shipped();
    let readings = generate(20_240, 40_000, 0.03);
    let windows: Vec<_> = readings.chunks_exact(32).collect();
    let batch: Vec<Window> = windows.iter().map(|it| window(it)).collect();
    let findings = find(&mut sentinel, &batch);
    let mut counts = [[0u32; 2]; 2];
    for (readings, finding) in windows.iter().zip(&findings) {
        let n_anomalous = readings.iter().filter(|it| it.is_anomaly == Some(true)).count();
        counts[usize::from(n_anomalous > 0)][usize::from(finding.is_anomaly)] += 1;
    }
    let [[sound, false_alarms], [missed, found]] = counts;
    let recall = f64::from(found) / f64::from(found + missed);
    let false_alarm_rate = f64::from(false_alarms) / f64::from(sound + false_alarms);
    assert!(recall > 0.85, "recall {recall}");
    assert!(false_alarm_rate < 0.02, "false alarms {false_alarm_rate}");
}

/// Spoils one sensor of a window.
type Fault = fn(&mut [f32], f32);

#[test]
fn the_driver_is_the_sensor_that_is_off() {
    let mut sentinel = shipped();
    let readings = generate(5, 6_400, 0.0);
    let spike: Fault = |values, swing| values[16] += 5.0 * swing;
    let ramp: Fault = |values, swing| {
        values.iter_mut().enumerate().for_each(|(place, it)| *it += place as f32 / 10.0 * swing);
    };
    let stuck: Fault = |values, _| values.fill(values[0]);
    for (name, fault, least) in [("spike", spike, 0.99), ("ramp", ramp, 0.8), ("stuck", stuck, 0.5)]
    {
        for (sensor, swing) in Sensor::ALL.into_iter().zip([0.9, 6.0, 0.35]) {
            let spoiled = readings.chunks_exact(32).map(|readings| {
                let mut window = window(readings);
                fault(
                    match sensor {
                        Sensor::Vibration => &mut window.vibration,
                        Sensor::Temperature => &mut window.temperature,
                        Sensor::Pressure => &mut window.pressure,
                    },
                    swing,
                );
                window
            });
            let findings = find(&mut sentinel, &spoiled.collect::<Vec<_>>());
            let n_right = findings.iter().filter(|it| it.driver == sensor).count();
            let share = n_right as f64 / findings.len() as f64;
            assert!(share >= least, "{name} of {sensor}: {share}");
        }
    }
}

#[test]
fn a_longer_run_is_judged_by_its_worst_window() {
    let mut sentinel = shipped();
    let mut readings = generate(6, 200, 0.0);
    readings[150].values[0] += 6.0;
    let run = find(&mut sentinel, &[window(&readings)])[0];
    assert!(run.is_anomaly && (119..=150).contains(&run.at), "{run:?}");
    let own = find(&mut sentinel, &[window(&readings[run.at..run.at + 32])])[0];
    assert!((own.score - run.score).abs() < 1e-3 * run.score);
}

#[test]
fn a_bad_item_fails_alone_and_says_what_to_send() {
    let mut sentinel = shipped();
    let good = window(&generate(8, 32, 0.0));
    let mut short = good.clone();
    short.vibration.pop();
    let (mut uneven, mut odd, mut huge) = (good.clone(), good.clone(), good.clone());
    uneven.pressure.push(1.0);
    odd.temperature[3] = f32::NAN;
    huge.vibration[3] = f32::MAX;
    let batch = [short, good.clone(), uneven, odd, Window::default(), huge, good.clone()];
    let results = sentinel.infer(&batch).expect("the batch runs");
    let alone = find(&mut sentinel, &[good])[0];
    for place in [1, 6] {
        let score = results[place].as_ref().expect("a sound item").score;
        assert!((score - alone.score).abs() < 1e-4, "{score} {}", alone.score);
    }
    for (place, says) in [
        (0, "readings has 31 of vibration; send 32 to 4096"),
        (2, "pressure has 33 readings, vibration has 32; send as many of each"),
        (3, "readings[3]: temperature is not a finite number"),
        (4, "readings has 0 of vibration"),
        (5, "output is not finite"),
    ] {
        let error = results[place].as_ref().expect_err(says).to_string();
        assert!(error.contains(says), "{error}");
    }
    assert!(sentinel.infer(&[]).expect("nothing").is_empty());
    sentinel.warm_up().expect("it runs");
}

#[test]
fn a_window_is_read_from_json() {
    let json = r#"{"vibration": [1, 2], "temperature": [3, 4.5], "pressure": [5, 6]}"#;
    let window: Window = serde_json::from_str(json).expect("a window");
    assert_eq!(window.temperature, [3.0, 4.5]);
    assert!(serde_json::from_str::<Window>(r#"{"vibration": [1]}"#).is_err());
}

#[test]
fn training_with_the_same_seed_gives_the_same_weights() {
    // Long enough that the part held out for the scores has a few anomalies of each kind.
    let readings = generate(3, 12_000, 0.05);
    let files = |options: &Options| {
        let dir = tempfile::tempdir().expect("a directory");
        let mut epochs = Vec::new();
        let trained = train(&readings, options, &mut |epoch| epochs.push(epoch.epoch));
        let (sentinel, report) = trained.expect("it trains");
        sentinel.save(dir.path()).expect("saved");
        assert_eq!(epochs, (1..=options.epochs).collect::<Vec<_>>());
        let read = |name: &str| std::fs::read(dir.path().join(name)).expect("a file");
        (read("config.json"), read("model.safetensors"), report)
    };
    let longer = Options { epochs: 30, ..small() };
    let first = files(&longer);
    assert!(first == files(&longer));
    assert!(first.1 != files(&Options { seed: 2, ..longer }).1);
    let scores = first.2.labelled.expect("labels of both kinds");
    assert!(scores.roc_auc > 0.8, "{scores:?}");
}

#[test]
fn a_trained_sentinel_is_saved_recognised_and_loaded() {
    let readings: Vec<Reading> =
        generate(4, 2_000, 0.0).into_iter().map(|it| Reading { is_anomaly: None, ..it }).collect();
    let trained = train(&readings, &small(), &mut |_| {});
    let (mut sentinel, report) = trained.expect("it trains");
    assert_eq!(report.labelled, None);
    let dir = tempfile::tempdir().expect("a directory");
    sentinel.save(dir.path()).expect("saved");
    assert_eq!(recognise(dir.path()).expect("known"), ModelKind::Sentinel);
    let info = ModelInfo::read(dir.path()).expect("known");
    assert_eq!(
        (info.parameters, info.max_tokens),
        (96 * 16 * 2 + 16 * 4 * 2 + 16 + 4 + 16 + 96, 32)
    );
    let mut loaded = Sentinel::load(dir.path(), DeviceChoice::Cpu).expect("it loads");
    let batch = [window(&readings[..32]), window(&readings[100..150])];
    assert_eq!(find(&mut sentinel, &batch), find(&mut loaded, &batch));
}

#[test]
fn what_cannot_be_trained_on_is_said() {
    let says = |readings: &[Reading], options: &Options, expected: &str| {
        let error = train(readings, options, &mut |_| {}).expect_err(expected).to_string();
        assert!(error.contains(expected), "{error}");
    };
    let readings = generate(1, 700, 0.0);
    assert!(train(&readings[..640], &small(), &mut |_| {}).is_ok());
    says(&readings[..100], &small(), "bring at least 640 readings");
    says(&[], &small(), "bring at least 640 readings");
    says(&readings, &Options { window: 1, ..small() }, "window is 1; choose 4 to 1024");
    says(&readings, &Options { learning_rate: f64::NAN, ..small() }, "learning_rate is NaN");
    says(&readings, &Options { epochs: 0, ..small() }, "epochs is 0");
    let mut flat = readings.clone();
    flat.iter_mut().for_each(|it| it.values[2] = 1.0);
    let error = train(&flat, &small(), &mut |_| {}).expect_err("flat");
    assert!(matches!(error, TrainError::Constant(Sensor::Pressure)), "{error}");
}

#[test]
fn readings_survive_a_file_and_a_bad_row_is_named() {
    let readings = generate(9, 50, 0.3);
    let mut file = Vec::new();
    write_csv(&readings, &mut file).expect("written");
    assert_eq!(read_csv(&file[..]).expect("read"), readings);
    let order = "pressure,vibration,temperature\n1,2,3\n";
    let read = read_csv(order.as_bytes()).expect("read");
    assert_eq!(read, [Reading { values: [2.0, 3.0, 1.0], is_anomaly: None }]);
    for (table, says) in [
        ("vibration,temperature\n1,2\n", "column \"pressure\" is missing"),
        ("vibration,temperature,pressure,colour\n", "column \"colour\" is unknown"),
        (
            "vibration,temperature,pressure\n1,2,3\n1,warm,3\n",
            "line 3, column temperature: \"warm\"",
        ),
        ("vibration,temperature,pressure\n1,2,inf\n", "line 2, column pressure: \"inf\""),
        ("vibration,temperature,pressure,label\n1,2,3,maybe\n", "line 2, column label: \"maybe\""),
        ("vibration,temperature,pressure\n1,2\n", "line: 2"),
    ] {
        let error = read_csv(table.as_bytes()).expect_err(says).to_string();
        assert!(error.contains(says), "{error}");
    }
}
