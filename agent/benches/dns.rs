//! What one DNS question costs a worker: from the bytes of the question to those of the answer, and the part of it that
//! finds the answer.
//!
//!     cargo bench -p portico-agent --bench dns

use std::{collections::BTreeMap, hint::black_box, net::IpAddr, sync::Arc};

use agent::{
    dns::{
        answer::{Answered, Known, PodNames, answer},
        message::{Carrier, Heard},
    },
    table::{
        Map,
        zone::{Content, Entry, Host, Port, Zone},
    },
};
use api::resource::{name::NamespacedName, service::Transport};
use criterion::{Criterion, criterion_group, criterion_main};
use hickory_proto::{
    op::{Edns, Message, Query},
    rr::{Name, RecordType},
};

/// Endpoints of the headless Service.
const ENDPOINTS: u8 = 50;

fn name(text: &str) -> Name {
    Name::from_ascii(text).expect("a name")
}

fn address(service: u32) -> IpAddr {
    IpAddr::V4((0x0a60_0000 + service).into())
}

/// A cluster of so many Services, and a headless one.
fn zone(services: u32) -> Zone {
    let domain = name("cluster.local.");
    let port = Port { name: "http".into(), transport: Transport::Tcp, number: 80 };
    let mut entries: BTreeMap<NamespacedName, Arc<Entry>> = (0..services)
        .map(|index| {
            let content = Content::ClusterIps([address(index)].into(), [port.clone()].into());
            let name = name(&format!("service-{index}.default.svc.cluster.local."));
            let key = NamespacedName::new("default", format!("service-{index}"));
            (key, Arc::new(Entry { name, content, hosts: Box::default() }))
        })
        .collect();
    let host = |last: u8| Host {
        label: format!("db-{last:02}").into_bytes().into(),
        name: name(&format!("db-{last:02}.db.default.svc.cluster.local.")),
        addresses: [IpAddr::from([10, 0, 0, last])].into(),
        ports: [port.clone()].into(),
    };
    let hosts = (0..ENDPOINTS).map(host).collect();
    let headless = Entry { name: name("db.default.svc.cluster.local."), content: Content::Headless, hosts };
    entries.insert(NamespacedName::new("default", "db"), Arc::new(headless));
    Zone::new(domain, 1, Box::default(), &entries, ["default"])
}

fn bench(criterion: &mut Criterion) {
    let (zone, workloads) = (zone(5_000), Map::default());
    let known = Known { zone: &zone, workloads: &workloads, pods: PodNames::Disabled, servers: &[] };
    let mut random = fastrand::Rng::with_seed(1);
    let mut group = criterion.benchmark_group("dns");
    for (what, asked, kind) in [
        ("ClusterIP", "service-7.default.svc.cluster.local.", RecordType::A),
        ("SRV", "_http._tcp.service-7.default.svc.cluster.local.", RecordType::SRV),
        ("headless of 50", "db.default.svc.cluster.local.", RecordType::A),
        ("search path miss", "www.example.com.default.svc.cluster.local.", RecordType::A),
    ] {
        let query = Query::query(name(asked), kind);
        group.bench_function(format!("answer {what}"), |bencher| {
            bencher.iter(|| black_box(answer(&query, &known, &mut random)));
        });
        let mut message = Message::query();
        message.queries.push(query);
        message.edns = Some(Edns::new());
        let bytes = message.to_vec().expect("encodes");
        group.bench_function(format!("bytes to bytes {what}"), |bencher| {
            bencher.iter(|| {
                let Heard::Request(request) = Heard::parse(black_box(&bytes), Carrier::Udp) else {
                    panic!("a question")
                };
                let Answered::Here(answer) = answer(&request.query, &known, &mut random) else {
                    panic!("a name of ours")
                };
                request.reply(answer)
            });
        });
    }
    group.finish();
}

criterion_group!(benches, bench);
criterion_main!(benches);
