import Crypto
import HTTPTypes
import Hummingbird
import JSONSupport
import NIOCore
import Synchronization

/// The contract: the OpenAPI document, and the same as a page.
extension API {
  func addDocumentationRoutes(to router: Router<Context>, _ routes: inout RouteTable, _ documents: Documents) {
    routes.add(.get, "/openapi.json", "The OpenAPI document of this API", for: .open, to: router) { _, _ in
      Self.json(documents.document, [.cacheControl: "no-cache"])
    }
    routes.add(.get, "/docs", "The documentation as a page", for: .open, to: router) { _, _ in
      Response(
        status: .ok,
        headers: [
          .contentType: "text/html; charset=utf-8",
          .cacheControl: "no-cache",
          .contentSecurityPolicy: DocumentationPage.contentSecurityPolicy,
          .xContentTypeOptions: "nosniff",
          .referrerPolicy: "no-referrer",
        ],
        body: ResponseBody(byteBuffer: documents.page))
    }
  }

  /// What is made when somebody asks for it the first time, so that no start waits for it.
  final class Documents: Sendable {
    private struct Made {
      var document: ByteBuffer?
      var page: ByteBuffer?
    }

    private let openAPI: OpenAPIDocument
    private let made = Mutex(Made())

    init(_ openAPI: OpenAPIDocument) { self.openAPI = openAPI }

    var document: ByteBuffer {
      made.withLock { made in
        if let document = made.document { return document }
        let document = ByteBuffer(bytes: openAPI.json.encoded() + [UInt8(ascii: "\n")])
        made.document = document
        return document
      }
    }

    var page: ByteBuffer {
      made.withLock { made in
        if let page = made.page { return page }
        let page = DocumentationPage(openAPI: openAPI).html
        made.page = page
        return page
      }
    }
  }
}
