//! What the path of a connection pays for its choice, and what a change of state costs the control thread.
//!
//!     cargo bench -p portico-agent --bench table

use std::{
    cell::Cell,
    hint::black_box,
    net::{IpAddr, Ipv4Addr, SocketAddr},
    num::NonZeroU16,
    sync::Arc,
};

use agent::{
    apply::{
        compile::{Compiler, Here, NodePortAddresses},
        resources::{Dirty, Resources},
    },
    balance::{
        flow::FlowHash,
        pick::{Load, pick},
        ring::Ring,
    },
    table::{Backend, Balance, Candidates, HashKey, Table, certificate::TlsContext},
};
use api::{
    delta::{Changed, Changes, version::Version},
    resource::{
        Resource,
        endpoint::{Endpoint, EndpointPort},
        name::NamespacedName,
        service::{AppProtocol, Service, ServicePort, ServiceType, Transport},
    },
};
use criterion::{BenchmarkId, Criterion, criterion_group, criterion_main};

fn address(index: u32) -> IpAddr {
    Ipv4Addr::from(0x0a00_0000 + index).into()
}

fn port() -> NonZeroU16 {
    NonZeroU16::new(80).expect("not zero")
}

fn candidates(count: u32) -> Candidates {
    let backend = |index: u32| Arc::new(Backend::new(SocketAddr::new(address(index), 80)));
    Candidates::new((0..count).map(backend)).with_ring()
}

fn ring(criterion: &mut Criterion) {
    let mut group = criterion.benchmark_group("ring");
    for count in [10u32, 100, 1_000, 5_000] {
        let keys: Vec<String> = (0..count).map(|index| address(index).to_string()).collect();
        group.bench_with_input(BenchmarkId::new("build", count), &keys, |bencher, keys| {
            bencher.iter(|| Ring::new(keys.iter().map(|key| (key.as_str(), 1))));
        });
        let candidates = candidates(count);
        for (name, balance) in [
            ("hash", Balance::Hash(HashKey::Client)),
            ("least-request", Balance::LeastRequest),
            ("random", Balance::Random),
        ] {
            let (turn, mut client) = (Cell::new(0), 0u32);
            group.bench_function(BenchmarkId::new(format!("pick {name}"), count), |bencher| {
                bencher.iter(|| {
                    client = client.wrapping_add(0x9e37_79b9);
                    let hash = FlowHash::of_client(Ipv4Addr::from(client).into());
                    black_box(pick(&candidates, &balance, hash, &turn, |_| Load::default(), &[]))
                });
            });
        }
    }
    group.finish();
}

fn service(index: u32) -> Service {
    Service {
        cluster_ips: vec![Ipv4Addr::from(0x7f60_0000 + index).into()],
        ports: vec![ServicePort {
            name: String::new(),
            transport: Transport::Tcp,
            port: port(),
            node_port: None,
            protocol: AppProtocol::Http,
            terminate_tls: false,
        }],
        ..Service::new(NamespacedName::new("default", format!("service-{index}")), ServiceType::ClusterIp)
    }
}

fn endpoint(service: u32, index: u32, ready: bool) -> Endpoint {
    let address = address(service * 256 + index);
    Endpoint {
        ports: vec![EndpointPort { name: String::new(), transport: Transport::Tcp, port: port() }],
        ready,
        serving: ready,
        ..Endpoint::new(NamespacedName::new("default", format!("service-{service}")), address)
    }
}

fn changes(resources: impl Iterator<Item = Resource>) -> Changes {
    let changed = |resource: Resource| {
        let body = resource.encode();
        Changed { key: resource.key(), version: Version::of(&body), body: body.into() }
    };
    Changes { set: resources.map(changed).collect(), removed: vec![] }
}

/// A cluster of `services` Services with ten endpoints each, and its table.
fn cluster(services: u32) -> (Resources, Compiler, Table) {
    let mut resources = Resources::default();
    let endpoints =
        (0..services).flat_map(|s| (0..10).map(move |e| Resource::Endpoint(Box::new(endpoint(s, e, true)))));
    let all = (0..services).map(|index| Resource::Service(Box::new(service(index)))).chain(endpoints);
    let (rejections, dirty) = resources.apply(changes(all));
    assert!(rejections.is_empty());
    let here = Here { node: "node-a".to_owned(), node_port_addresses: NodePortAddresses::All, http_port: None };
    let mut compiler = Compiler::new(here, TlsContext::new().expect("the system has randomness"));
    let table = compiler.compile(&resources, &dirty);
    (resources, compiler, table)
}

fn table(criterion: &mut Criterion) {
    let mut group = criterion.benchmark_group("table");
    for count in [100u32, 3_000] {
        let (mut resources, mut compiler, table) = cluster(count);
        let mut index = 0;
        group.bench_function(BenchmarkId::new("look up", count), |bencher| {
            bencher.iter(|| {
                index = (index + 1) % count;
                let address = SocketAddr::new(Ipv4Addr::from(0x7f60_0000 + index).into(), 80);
                black_box(table.frontend(address, Transport::Tcp).expect("it is there"))
            });
        });
        group.bench_function(BenchmarkId::new("resolve a name", count), |bencher| {
            bencher.iter(|| black_box(table.names.resolve("service-7.default.svc.cluster.local:80", "default", 8080)));
        });
        group.bench_function(BenchmarkId::new("compile everything", count), |bencher| {
            bencher.iter(|| compiler.compile(&resources, &Dirty { all: true, ..Dirty::default() }));
        });
        let mut ready = false;
        group.bench_function(BenchmarkId::new("compile one endpoint's change", count), |bencher| {
            bencher.iter(|| {
                ready = !ready;
                let change = changes([Resource::Endpoint(Box::new(endpoint(3, 4, ready)))].into_iter());
                let (_, dirty) = resources.apply(change);
                compiler.compile(&resources, &dirty)
            });
        });
    }
    group.finish();
}

criterion_group!(benches, ring, table);
criterion_main!(benches);
