public import ClaudeAPI
public import HummingbirdFastCGI

extension BasicFastCGIRequestContext: APIRequestContext {
  public func serverParameter(_ name: String) -> String? { parametersOfServer[name] }
}
