# Makes calls with Ruby's grpc: see README.md.

require "base64"
require "grpc"
require "json"

# Messages are passed on as bytes, so no generated code is needed.
SAME = ->(bytes) { bytes }

def outcome(call)
  credentials = call["ca"] ? GRPC::Core::ChannelCredentials.new(File.read(call["ca"])) : :this_channel_is_insecure
  arguments = {}
  # The number is gRPC's own for gzip.
  arguments["grpc.default_compression_algorithm"] = 2 if call["compress"]
  stub = GRPC::ClientStub.new(call["address"], credentials, channel_args: arguments)
  options = { metadata: call["authorization"] ? { "authorization" => call["authorization"] } : {} }
  options[:deadline] = Time.now + call["seconds"] if call["seconds"]
  request = Base64.decode64(call["bytes"])
  messages = []
  begin
    if call["stream"]
      operation = stub.server_streamer("/#{call["rpc"]}", request, SAME, SAME, return_op: true, **options)
      operation.execute.each do |message|
        messages << Base64.strict_encode64(message)
        operation.cancel if messages.length == call["cancelAfter"]
      end
    else
      messages << Base64.strict_encode64(stub.request_response("/#{call["rpc"]}", request, SAME, SAME, **options))
    end
    { code: 0, message: "", details: "", messages: messages }
  rescue GRPC::BadStatus => e
    details = Base64.strict_encode64(e.metadata["grpc-status-details-bin"] || "")
    { code: e.code, message: e.details.to_s, details: details, messages: messages }
  end
end

$stdout.sync = true
JSON.parse(File.read(ARGV[0]))["calls"].each { |call| puts JSON.generate(outcome(call)) }
