//! The discovery service on the wire. Frames are written as they were encoded once, without passing through messages
//! again, so the generated server cannot be used for Watch.

use std::{
    convert::Infallible,
    sync::Arc,
    task::{Context, Poll},
};

use api::{
    delta::server::Frame,
    proto::discovery::{
        ListResourcesRequest, ListResourcesResponse, WatchRequest, discovery_service_server as generated,
    },
};
use bytes::BufMut as _;
use futures::future::BoxFuture;
use tokio_stream::wrappers::ReceiverStream;
use tonic::{
    Request, Response, Status, Streaming,
    body::Body,
    codec::{Codec, EncodeBuf, Encoder},
    server::{Grpc, NamedService, StreamingService, UnaryService},
};
use tonic_prost::ProstCodec;

use super::Discovery;

/// The tower service to be added to a server.
#[derive(Clone, Debug)]
pub struct DiscoveryServer(Arc<Discovery>);

/// Writes frames, reads requests.
#[derive(Debug, Default)]
struct FrameCodec;

/// Writes frames.
#[derive(Debug)]
struct FrameEncoder;

struct WatchMethod(Arc<Discovery>);

struct ListMethod(Arc<Discovery>);

// === impl DiscoveryServer ===

impl DiscoveryServer {
    /// Serves `discovery`.
    pub fn new(discovery: Discovery) -> Self {
        Self(Arc::new(discovery))
    }
}

impl NamedService for DiscoveryServer {
    const NAME: &'static str = generated::SERVICE_NAME;
}

impl tower::Service<http::Request<Body>> for DiscoveryServer {
    type Response = http::Response<Body>;
    type Error = Infallible;
    type Future = BoxFuture<'static, Result<Self::Response, Infallible>>;

    fn poll_ready(&mut self, _: &mut Context<'_>) -> Poll<Result<(), Infallible>> {
        Poll::Ready(Ok(()))
    }

    fn call(&mut self, request: http::Request<Body>) -> Self::Future {
        let discovery = self.0.clone();
        Box::pin(async move {
            Ok(match request.uri().path() {
                "/portico.discovery.v1.DiscoveryService/Watch" => {
                    Grpc::new(FrameCodec).streaming(WatchMethod(discovery), request).await
                }
                "/portico.discovery.v1.DiscoveryService/ListResources" => {
                    let codec = ProstCodec::<ListResourcesResponse, ListResourcesRequest>::default();
                    Grpc::new(codec).unary(ListMethod(discovery), request).await
                }
                path => Status::unimplemented(format!("no method {path}")).into_http(),
            })
        })
    }
}

impl StreamingService<WatchRequest> for WatchMethod {
    type Response = Frame;
    type ResponseStream = ReceiverStream<Result<Frame, Status>>;
    type Future = std::future::Ready<Result<Response<Self::ResponseStream>, Status>>;

    fn call(&mut self, request: Request<Streaming<WatchRequest>>) -> Self::Future {
        std::future::ready(self.0.watch(request))
    }
}

impl UnaryService<ListResourcesRequest> for ListMethod {
    type Response = ListResourcesResponse;
    type Future = std::future::Ready<Result<Response<ListResourcesResponse>, Status>>;

    fn call(&mut self, request: Request<ListResourcesRequest>) -> Self::Future {
        std::future::ready(self.0.list(request.get_ref()).map(Response::new))
    }
}

// === impl FrameCodec ===

impl Codec for FrameCodec {
    type Encode = Frame;
    type Decode = WatchRequest;
    type Encoder = FrameEncoder;
    type Decoder = <ProstCodec<WatchRequest, WatchRequest> as Codec>::Decoder;

    fn encoder(&mut self) -> FrameEncoder {
        FrameEncoder
    }

    fn decoder(&mut self) -> Self::Decoder {
        ProstCodec::<WatchRequest, WatchRequest>::default().decoder()
    }
}

impl Encoder for FrameEncoder {
    type Item = Frame;
    type Error = Status;

    fn encode(&mut self, frame: Frame, buffer: &mut EncodeBuf<'_>) -> Result<(), Status> {
        buffer.reserve(frame.len());
        frame.parts().into_iter().for_each(|part| buffer.put_slice(part));
        Ok(())
    }
}
