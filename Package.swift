// swift-tools-version: 6.2

import PackageDescription

let swiftSettings: [SwiftSetting] = [
  .swiftLanguageMode(.v6),
  .enableUpcomingFeature("ExistentialAny"),
  .enableUpcomingFeature("MemberImportVisibility"),
  .enableUpcomingFeature("InternalImportsByDefault"),
  .treatAllWarnings(as: .error),
]

let argumentParser = Target.Dependency.product(name: "ArgumentParser", package: "swift-argument-parser")
let crypto = Target.Dependency.product(name: "Crypto", package: "swift-crypto")
let httpTypes = Target.Dependency.product(name: "HTTPTypes", package: "swift-http-types")
let hummingbird = Target.Dependency.product(name: "Hummingbird", package: "hummingbird")
let logging = Target.Dependency.product(name: "Logging", package: "swift-log")
let nioCore = Target.Dependency.product(name: "NIOCore", package: "swift-nio")
let nioHTTP1 = Target.Dependency.product(name: "NIOHTTP1", package: "swift-nio")
let nioPosix = Target.Dependency.product(name: "NIOPosix", package: "swift-nio")
let serviceLifecycle = Target.Dependency.product(
  name: "ServiceLifecycle", package: "swift-service-lifecycle")
let unixSignals = Target.Dependency.product(name: "UnixSignals", package: "swift-service-lifecycle")

let package = Package(
  name: "claude-api-server",
  products: [
    .library(name: "HummingbirdFastCGI", targets: ["HummingbirdFastCGI"]),
    .executable(name: "claude-api", targets: ["claude-api"]),
    .executable(name: "claude-api-server", targets: ["claude-api-server"]),
    .executable(name: "demo-model", targets: ["demo-model"]),
  ],
  dependencies: [
    .package(url: "https://github.com/apple/swift-argument-parser", from: "1.8.0"),
    .package(url: "https://github.com/apple/swift-collections", from: "1.6.0"),
    .package(
      url: "https://github.com/apple/swift-configuration", from: "1.4.0",
      traits: ["JSON", "CommandLineArguments"]),
    .package(url: "https://github.com/apple/swift-crypto", from: "4.0.0"),
    .package(url: "https://github.com/apple/swift-http-types", from: "1.8.0"),
    .package(url: "https://github.com/apple/swift-log", from: "1.16.0"),
    .package(url: "https://github.com/apple/swift-nio", from: "2.101.0"),
    .package(url: "https://github.com/apple/swift-system", from: "1.8.0"),
    .package(url: "https://github.com/groue/GRDB.swift", from: "7.10.0"),
    .package(url: "https://github.com/hummingbird-project/hummingbird", from: "2.28.0"),
    .package(url: "https://github.com/swift-server/async-http-client", from: "1.37.0"),
    .package(url: "https://github.com/swift-server/swift-service-lifecycle", from: "2.13.0"),
  ],
  targets: [
    // C
    .systemLibrary(name: "CArchive", pkgConfig: "libarchive", providers: [.apt(["libarchive-dev"])]),
    .systemLibrary(name: "CLzma", pkgConfig: "liblzma", providers: [.apt(["liblzma-dev"])]),
    .systemLibrary(name: "CFastCGI", pkgConfig: "fcgi", providers: [.apt(["libfcgi-dev"])]),
    .target(name: "CLinux"),

    // Libraries
    .target(
      name: "ClaudeAPI",
      dependencies: [
        "HummingbirdFastCGI", "JSONSupport", "Sessions", "WebSockets", "Workspaces", crypto, httpTypes, hummingbird,
        logging, nioCore,
      ],
      swiftSettings: swiftSettings),
    .target(
      name: "ClaudeRunner",
      dependencies: ["CLinux", "JSONSupport", "NIOSupport", logging, nioCore, nioPosix],
      swiftSettings: swiftSettings),
    .target(
      name: "ClientSupport",
      dependencies: [
        .product(name: "AsyncHTTPClient", package: "async-http-client"),
        nioCore,
        .product(name: "NIOFoundationCompat", package: "swift-nio"),
        nioHTTP1,
      ],
      swiftSettings: swiftSettings),
    .target(
      name: "DemoModel",
      dependencies: ["JSONSupport", httpTypes, hummingbird, logging, nioCore],
      swiftSettings: swiftSettings),
    .target(
      name: "HummingbirdFastCGI",
      dependencies: [
        "CFastCGI", "CLinux",
        .product(name: "DequeModule", package: "swift-collections"),
        .product(name: "HeapModule", package: "swift-collections"),
        httpTypes, hummingbird, logging, nioCore, serviceLifecycle,
      ],
      swiftSettings: swiftSettings),
    .target(name: "JSONSupport", swiftSettings: swiftSettings),
    .target(name: "Monitoring", dependencies: [logging], swiftSettings: swiftSettings),
    .target(name: "NIOSupport", dependencies: [nioCore], swiftSettings: swiftSettings),
    .target(name: "Sandbox", dependencies: ["CLinux", "ClaudeRunner"], swiftSettings: swiftSettings),
    .target(
      name: "SQLiteStore",
      dependencies: [
        "Sessions", .product(name: "GRDB", package: "GRDB.swift"), .product(name: "GRDBSQLite", package: "GRDB.swift"),
      ],
      swiftSettings: swiftSettings),
    .target(
      name: "Sessions", dependencies: ["JSONSupport", "Workspaces", logging, nioCore], swiftSettings: swiftSettings),
    .target(
      name: "WebSockets",
      dependencies: [
        "HummingbirdFastCGI", "NIOSupport", httpTypes, logging, nioCore, nioHTTP1, nioPosix,
        .product(name: "NIOWebSocket", package: "swift-nio"),
        serviceLifecycle,
      ],
      swiftSettings: swiftSettings),
    .target(
      name: "Workspaces",
      dependencies: [
        "CArchive", "CLinux", "CLzma",
        .product(name: "NIOConcurrencyHelpers", package: "swift-nio"),
        crypto, nioPosix,
      ],
      swiftSettings: swiftSettings),

    // Programs
    .executableTarget(
      name: "claude-api", dependencies: ["ClientSupport", argumentParser], swiftSettings: swiftSettings),
    .executableTarget(
      name: "claude-api-server",
      dependencies: [
        "CLinux", "ClaudeAPI", "ClaudeRunner", "DemoModel", "HummingbirdFastCGI", "JSONSupport", "Monitoring",
        "SQLiteStore", "Sandbox", "Sessions", "WebSockets", "Workspaces", argumentParser,
        .product(name: "Configuration", package: "swift-configuration"),
        .product(name: "SystemPackage", package: "swift-system"),
        httpTypes, logging, nioCore, nioPosix, serviceLifecycle, unixSignals,
      ],
      swiftSettings: swiftSettings),
    .executableTarget(
      name: "demo-model",
      dependencies: ["DemoModel", argumentParser, logging, serviceLifecycle, unixSignals],
      swiftSettings: swiftSettings),

    // Tests, and the programs and code that they use
    .testTarget(name: "ClientTests", dependencies: ["ClientSupport"], swiftSettings: swiftSettings),
    .testTarget(
      name: "ClaudeAPITests",
      dependencies: [
        "ClaudeAPI", "HummingbirdFastCGI", "JSONSupport", "SQLiteStore", "SessionTestSupport", "Sessions",
        "TestSupport", httpTypes, hummingbird, logging, nioCore,
      ],
      swiftSettings: swiftSettings),
    .testTarget(
      name: "ClaudeRunnerTests",
      dependencies: [
        "CLinux", "ClaudeRunner", "DemoModel", "JSONSupport", "TestSupport", "fake-claude", logging, nioCore, nioPosix,
        serviceLifecycle,
      ],
      swiftSettings: swiftSettings),
    .testTarget(
      name: "DemoModelTests", dependencies: ["DemoModel", "JSONSupport"], swiftSettings: swiftSettings),
    .testTarget(
      name: "EndToEndTests",
      dependencies: [
        "JSONSupport", "TestSupport", "claude-api", "claude-api-server", "demo-model", "fake-claude",
        .product(name: "AsyncHTTPClient", package: "async-http-client"),
        nioCore,
        .product(name: "NIOFoundationCompat", package: "swift-nio"),
        nioHTTP1,
      ],
      exclude: ["Contract"],
      swiftSettings: swiftSettings),
    .executableTarget(
      name: "fake-claude", dependencies: ["JSONSupport"], path: "Tests/FakeClaude",
      swiftSettings: swiftSettings + [.defaultIsolation(MainActor.self)]),
    .testTarget(
      name: "FilesTests",
      dependencies: [
        "CLinux", "ClaudeAPI", "HummingbirdFastCGI", "JSONSupport", "SessionTestSupport", "Sessions", "TestSupport",
        "Sandbox", "Workspaces", crypto, hummingbird, logging, serviceLifecycle,
      ],
      exclude: ["Browser"],
      swiftSettings: swiftSettings),
    .testTarget(
      name: "HummingbirdFastCGITests",
      dependencies: [
        "CLinux", "HummingbirdFastCGI", "TestSupport", httpTypes, hummingbird, logging, nioCore, serviceLifecycle,
      ],
      swiftSettings: swiftSettings),
    .testTarget(
      name: "JSONSupportTests", dependencies: ["JSONSupport", "TestSupport"], swiftSettings: swiftSettings),
    .testTarget(
      name: "MonitoringTests", dependencies: ["Monitoring", "TestSupport", logging], swiftSettings: swiftSettings),
    .testTarget(name: "NginxTests", dependencies: ["TestSupport"], swiftSettings: swiftSettings),
    .testTarget(
      name: "SandboxTests", dependencies: ["ClaudeRunner", "Sandbox", "TestSupport"], swiftSettings: swiftSettings),
    .target(
      name: "SessionStoreContract", dependencies: ["Sessions"], path: "Tests/SessionStoreContract",
      swiftSettings: swiftSettings),
    .target(
      name: "SessionTestSupport", dependencies: ["JSONSupport", "Sessions", "TestSupport", "Workspaces", logging],
      path: "Tests/SessionTestSupport", swiftSettings: swiftSettings),
    .testTarget(
      name: "ServerTests",
      dependencies: ["ClaudeRunner", "Sandbox", "Sessions", "TestSupport", "Workspaces", "claude-api-server"],
      swiftSettings: swiftSettings),
    .testTarget(
      name: "SessionsTests",
      dependencies: [
        "JSONSupport", "SQLiteStore", "SessionStoreContract", "SessionTestSupport", "Sessions", "TestSupport", nioCore,
      ],
      swiftSettings: swiftSettings),
    .testTarget(
      name: "SQLiteStoreTests",
      dependencies: [
        "SQLiteStore", "SessionStoreContract", "Sessions", "TestSupport", "store-writer",
        .product(name: "GRDB", package: "GRDB.swift"),
      ],
      swiftSettings: swiftSettings),
    .executableTarget(
      name: "store-writer", dependencies: ["SQLiteStore", "Sessions"], path: "Tests/StoreWriter",
      swiftSettings: swiftSettings),
    .target(
      name: "TestSupport", dependencies: ["JSONSupport", logging], path: "Tests/TestSupport",
      swiftSettings: swiftSettings),
    .testTarget(
      name: "WebSocketTests",
      dependencies: [
        "ClaudeAPI", "HummingbirdFastCGI", "JSONSupport", "SessionTestSupport", "Sessions", "TestSupport", "WebSockets",
        httpTypes, hummingbird, logging, nioCore, serviceLifecycle,
      ],
      swiftSettings: swiftSettings),
    .testTarget(
      name: "WorkspacesTests", dependencies: ["CLinux", "TestSupport", "Workspaces"], exclude: ["Fixtures"],
      swiftSettings: swiftSettings),
  ]
)
