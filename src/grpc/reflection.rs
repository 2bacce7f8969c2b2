//! `grpc.reflection`, in both versions: older tools speak only v1alpha. Their messages are the same on the wire.
//!
//! What cannot be found is an answer, and the stream goes on.

use std::collections::HashMap;
use std::sync::Arc;

use futures::stream::Empty;
use prost::Message;
use prost_reflect::{DescriptorPool, EnumDescriptor, FileDescriptor, MessageDescriptor};
use tonic::{Code, Request, Response, Status, Streaming};
use tonic_reflection::pb::v1::server_reflection_request::MessageRequest as Asked;
use tonic_reflection::pb::v1::server_reflection_response::MessageResponse as Answer;
use tonic_reflection::pb::{v1, v1alpha};

use super::service_streams::{Open, ServiceStreams};
use super::shared::{self, FrameStream, framed};
use super::status::exhausted;
use crate::api;

/// The service.
#[derive(Clone)]
pub(super) struct Reflection {
    streams: ServiceStreams,
    index: Arc<Index>,
}

/// What can be asked for.
struct Index {
    pool: DescriptorPool,
    /// Files by the full names of what they define.
    symbols: HashMap<String, FileDescriptor>,
}

impl Reflection {
    /// # Errors
    /// The descriptors are broken: then this program was built wrongly.
    pub(super) fn new(streams: ServiceStreams) -> anyhow::Result<Self> {
        let mut pool = DescriptorPool::new();
        for descriptors in [
            api::DESCRIPTORS,
            tonic_health::pb::FILE_DESCRIPTOR_SET,
            tonic_types::pb::FILE_DESCRIPTOR_SET,
            v1::FILE_DESCRIPTOR_SET,
            v1alpha::FILE_DESCRIPTOR_SET,
        ] {
            // Files that are there already are passed over.
            pool.decode_file_descriptor_set(descriptors)?;
        }
        Ok(Self { streams, index: Arc::new(Index::new(pool)) })
    }

    fn answers<T: Message + Default + Send + 'static>(
        &self,
        request: Request<Streaming<T>>,
        to_v1: fn(T) -> Option<v1::ServerReflectionRequest>,
    ) -> Result<FrameStream, Status> {
        let mut open: Open = self.streams.open(&request)?;
        let (index, mut requests) = (Arc::clone(&self.index), request.into_inner());
        Ok(Box::pin(async_stream::try_stream! {
            loop {
                // `None`: something else has changed.
                let request = tokio::select! {
                    changed = open.changed() => changed.map(|()| None),
                    request = requests.message() => request.map(Some).map_err(in_the_words_of_all_calls),
                };
                match request? {
                    None => {}
                    Some(None) => break,
                    Some(Some(request)) => yield framed(&index.answer(to_v1(request).unwrap_or_default())),
                }
            }
        }))
    }
}

/// tonic says of a message that is too large that it is out of range.
fn in_the_words_of_all_calls(status: Status) -> Status {
    if status.code() == Code::OutOfRange { exhausted("bytes of a request", status.message()) } else { status }
}

impl Index {
    fn new(pool: DescriptorPool) -> Self {
        let mut index = Self { pool: pool.clone(), symbols: HashMap::new() };
        for service in pool.services() {
            index.add(service.full_name(), &service.parent_file());
            for method in service.methods() {
                index.add(method.full_name(), &service.parent_file());
            }
        }
        for message in pool.all_messages() {
            index.add_message(&message);
        }
        for all in pool.all_enums() {
            index.add_enum(&all);
        }
        for extension in pool.all_extensions() {
            index.add(extension.full_name(), &extension.parent_file());
        }
        index
    }

    fn add(&mut self, name: &str, file: &FileDescriptor) {
        self.symbols.insert(name.to_owned(), file.clone());
    }

    fn add_message(&mut self, message: &MessageDescriptor) {
        let file = message.parent_file();
        self.add(message.full_name(), &file);
        for field in message.fields() {
            self.add(field.full_name(), &file);
        }
        for oneof in message.oneofs() {
            self.add(oneof.full_name(), &file);
        }
    }

    fn add_enum(&mut self, all: &EnumDescriptor) {
        self.add(all.full_name(), &all.parent_file());
        for value in all.values() {
            // Beside its enum, as C++ would have it, and within: tools differ.
            self.add(value.full_name(), &all.parent_file());
            self.add(&format!("{}.{}", all.full_name(), value.name()), &all.parent_file());
        }
    }

    fn answer(&self, request: v1::ServerReflectionRequest) -> v1::ServerReflectionResponse {
        let answer = request.message_request.as_ref().map_or_else(
            || failed(Code::InvalidArgument, "nothing is asked for".to_owned()),
            |asked| self.find(asked).unwrap_or_else(|what| failed(Code::NotFound, format!("{what} not found"))),
        );
        v1::ServerReflectionResponse { valid_host: request.host.clone(), original_request: Some(request), message_response: Some(answer) }
    }

    /// The error says what there is not.
    fn find(&self, asked: &Asked) -> Result<Answer, String> {
        match asked {
            Asked::FileByFilename(name) => self.pool.get_file_by_name(name).map(|it| file(&it)).ok_or_else(|| format!("file {name:?}")),
            Asked::FileContainingSymbol(name) => {
                self.symbols.get(name.trim_start_matches('.')).map(file).ok_or_else(|| format!("symbol {name:?}"))
            }
            Asked::FileContainingExtension(extension) => {
                let (name, number) = (&extension.containing_type, extension.extension_number);
                let message = self.pool.get_message_by_name(name);
                let found = message.and_then(|it| it.extensions().find(|it| i64::from(it.number()) == i64::from(number)));
                found.map(|it| file(&it.parent_file())).ok_or_else(|| format!("extension {number} of {name:?}"))
            }
            Asked::AllExtensionNumbersOfType(name) => {
                let message = self.pool.get_message_by_name(name).ok_or_else(|| format!("message {name:?}"))?;
                let numbers = message.extensions().filter_map(|it| i32::try_from(it.number()).ok()).collect();
                Ok(Answer::AllExtensionNumbersResponse(v1::ExtensionNumberResponse {
                    base_type_name: name.clone(),
                    extension_number: numbers,
                }))
            }
            Asked::ListServices(_) => {
                let service = self.pool.services().map(|it| v1::ServiceResponse { name: it.full_name().to_owned() }).collect();
                Ok(Answer::ListServicesResponse(v1::ListServiceResponse { service }))
            }
        }
    }
}

fn file(file: &FileDescriptor) -> Answer {
    Answer::FileDescriptorResponse(v1::FileDescriptorResponse { file_descriptor_proto: vec![file.encode_to_vec()] })
}

fn failed(code: Code, error_message: String) -> Answer {
    Answer::ErrorResponse(v1::ErrorResponse { error_code: code as i32, error_message })
}

#[tonic::async_trait]
impl v1::server_reflection_server::ServerReflection for Reflection {
    type ServerReflectionInfoStream = Empty<Result<v1::ServerReflectionResponse, Status>>;

    async fn server_reflection_info(
        &self,
        request: Request<Streaming<v1::ServerReflectionRequest>>,
    ) -> Result<Response<Self::ServerReflectionInfoStream>, Status> {
        let answers = self.answers(request, Some)?;
        Ok(shared::response("grpc.reflection.v1.ServerReflection/ServerReflectionInfo", answers))
    }
}

#[tonic::async_trait]
impl v1alpha::server_reflection_server::ServerReflection for Reflection {
    type ServerReflectionInfoStream = Empty<Result<v1alpha::ServerReflectionResponse, Status>>;

    async fn server_reflection_info(
        &self,
        request: Request<Streaming<v1alpha::ServerReflectionRequest>>,
    ) -> Result<Response<Self::ServerReflectionInfoStream>, Status> {
        let to_v1 = |request: v1alpha::ServerReflectionRequest| v1::ServerReflectionRequest::decode(&*request.encode_to_vec()).ok();
        let answers = self.answers(request, to_v1)?;
        Ok(shared::response("grpc.reflection.v1alpha.ServerReflection/ServerReflectionInfo", answers))
    }
}
