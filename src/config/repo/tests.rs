use super::*;

fn environment() -> Environment {
    Environment::of(1, [("BUCKET", "from-env"), ("N", "7"), ("EMPTY", ""), ("HOME", "/home/me")])
}

fn parse(text: &str) -> Result<RepoConfig, ConfigError> {
    RepoConfig::parse(Path::new("/no/repo"), text, &environment())
}

fn with_variable(value: &str, text: &str) -> Result<RepoConfig, ConfigError> {
    RepoConfig::parse(Path::new("/no/repo"), text, &Environment::of(1, [(DATASTORE_ENV, value)]))
}

#[test]
fn every_documented_field_is_understood() {
    let repo = parse(
        r#"
repoId: 0a1b-2c
swampVersion: "20260812.1"
datastore:
  type: "@swamp/s3-datastore"
  namespace: infra
  syncTimeoutMs: 90000
  directories: [data, outputs]
  hydrationStrategy: lazy
  config:
    bucket: my-bucket
    prefix: swamp/x/
    region: us-east-1
    endpoint: http://localhost:9000
    forcePathStyle: true
    pullConcurrency: 8
    pushConcurrency: "9"
    requestTimeoutMs: 1500
"#,
    );
    let expected = RepoConfig {
        dir: "/no/repo".into(),
        repo_id: Some("0a1b-2c".into()),
        source: Source::S3 { bucket: "my-bucket".into(), prefix: "swamp/x".into() },
        namespace: Some(Namespace::parse("infra").expect("valid")),
        options: RepoOptions {
            region: Some("us-east-1".into()),
            project: None,
            endpoint_url: Some("http://localhost:9000".into()),
            force_path_style: Some(true),
            request_timeout: Some(Duration::from_millis(1500)),
            pull_concurrency: Some(8),
            push_concurrency: Some(9),
        },
        sync_timeout: Some(Duration::from_secs(90)),
        warnings: Vec::new(),
    };
    assert_eq!(repo.as_ref(), Ok(&expected));
    let repo = repo.expect("understood");
    assert_eq!(repo.mountpoint(), Path::new("/no/repo/.data"));
    assert_eq!(repo.usual_cache_dir(&environment()).as_deref(), Some(Path::new("/home/me/.swamp/repos/0a1b-2c")));

    let repo = parse(
        "datastore:\n  type: '@swamp/gcs-datastore'\n  config: {bucket: my_bucket, projectId: p-1, apiEndpoint: 'http://h:1'}",
    );
    let repo = repo.expect("understood");
    assert_eq!(repo.source.to_string(), "gs://my_bucket");
    assert_eq!(
        (repo.options.project.as_deref(), repo.options.endpoint_url.as_deref()),
        (Some("p-1"), Some("http://h:1"))
    );
    assert_eq!((repo.namespace, repo.repo_id, repo.warnings), (None, None, Vec::new()));
}

#[test]
fn every_form_names_its_source() {
    for (text, source) in [
        ("datastore:\n  type: s3\n  bucket: legacy-flat\n  prefix: p", "s3://legacy-flat/p"),
        ("datastore:\n  type: s3\n  config:\n    bucket: legacy-nested", "s3://legacy-nested"),
        ("datastore: {type: '@swamp/s3-datastore', config: {bucket: '${{ env.BUCKET }}'}}", "s3://from-env"),
        ("datastore:\n  type: \"@swamp/s3-datastore\"\n  config:\n    bucket: ${{ env.BUCKET }}\n", "s3://from-env"),
        ("datastore: {type: s3, bucket: 'a-${{env.N}}-b-${{ env.N }}'}", "s3://a-7-b-7"),
        ("datastore: {type: s3, bucket: 2026}", "s3://2026"),
        ("datastore: {type: filesystem, path: /no/such}", "file:///no/such"),
        ("datastore: {type: filesystem, config: {path: shared}}", "file:///no/repo/shared"),
        ("repoId: x", "file:///no/repo/.swamp"),
        ("", "file:///no/repo/.swamp"),
    ] {
        assert_eq!(parse(text).expect(text).source.to_string(), source, "{text}");
    }
    let file = "datastore: {type: nonsense, namespace: ns, config: {bucket: b}, typo: 1}";
    for (value, source) in [
        (r#"@swamp/s3-datastore:{"bucket":"b-1","prefix":"x"}"#, "s3://b-1/x"),
        (r#"@swamp/gcs-datastore:{"bucket":"b_1"}"#, "gs://b_1"),
        ("s3:b-1/x/y", "s3://b-1/x/y"),
        ("s3:b-1", "s3://b-1"),
        (r#"s3:{"bucket":"b-1"}"#, "s3://b-1"),
        ("filesystem:/no/such", "file:///no/such"),
        (r#"filesystem:{"path":"rel"}"#, "file:///no/repo/rel"),
    ] {
        let repo = with_variable(value, file).expect(value);
        assert_eq!(repo.source.to_string(), source, "{value}");
        assert_eq!(repo.namespace.expect("of the file").as_str(), "ns", "{value}");
        assert!(repo.warnings.iter().any(|warning| warning.contains("datastore.typo")), "{:?}", repo.warnings);
    }
}

#[test]
fn what_cannot_be_honoured_names_the_field_and_the_reason() {
    let s3 = |config: &str| format!("datastore: {{type: '@swamp/s3-datastore', config: {{{config}}}}}");
    for (text, words) in [
        (s3("prefix: x"), "datastore.config.bucket is missing"),
        (s3("bucket: '${{ env.MISSING }}'"), "datastore.config.bucket needs the environment variable MISSING"),
        (s3("bucket: '${{ env.EMPTY }}'"), "variable EMPTY, which is not set"),
        (s3("bucket: '${{ vault.x }}'"), "only ${{ env.NAME }} is understood"),
        (s3("bucket: '${{ env.N'"), "without \"}}\""),
        (s3("bucket: [a]"), "datastore.config.bucket is no text"),
        (s3("bucket: My_Bucket"), "upper-case"),
        (s3("bucket: b-1, prefix: 'a/../b'"), "\"..\""),
        (s3("bucket: b-1, requestTimeoutMs: 999"), "datastore.config.requestTimeoutMs is 999"),
        (s3("bucket: b-1, requestTimeoutMs: 600001"), "between 1000 and 600000"),
        (s3("bucket: b-1, pushConcurrency: 0"), "between 1 and 1000"),
        (s3("bucket: b-1, pullConcurrency: many"), "datastore.config.pullConcurrency"),
        (s3("bucket: b-1, forcePathStyle: maybe"), "neither true nor false"),
        ("datastore: {type: s3, bucket: b-1, syncTimeoutMs: -1}".to_owned(), "datastore.syncTimeoutMs"),
        ("datastore: {type: s3, bucket: b-1, namespace: a/b}".to_owned(), "\"a/b\" cannot be a namespace"),
        ("datastore: {type: s3, bucket: b-1, namespace: _index}".to_owned(), "datastore's own"),
        ("datastore: {type: '@swamp/gcs-datastore', config: {bucket: goog-x}}".to_owned(), "reserved"),
        ("datastore: {type: '@myorg/redis', config: {}}".to_owned(), "datastore.type is \"@myorg/redis\"; known are"),
        ("datastore: {config: {bucket: b-1}}".to_owned(), "datastore.type is missing"),
        ("datastore: {type: filesystem}".to_owned(), "datastore.path is missing"),
        ("datastore: [a]".to_owned(), "datastore is no mapping"),
        ("- a".to_owned(), "the document is no mapping"),
        ("datastore: {".to_owned(), "is not YAML"),
        ("datastore: {}\ndatastore: {}".to_owned(), "is not YAML"),
    ] {
        let error = parse(&text).expect_err(&text).to_string();
        assert!(error.contains(words), "{text}: {error}");
    }
    for (value, words) in [
        ("my-bucket", "TYPE:CONFIGURATION"),
        ("@myorg/redis:{}", "known are"),
        ("@swamp/s3-datastore:bucket", "not JSON"),
        ("@swamp/s3-datastore:{}", "SWAMP_DATASTORE: bucket is missing"),
        ("filesystem:", "no directory"),
        ("s3:", "fewer than 3"),
        (
            r#"@swamp/s3-datastore:{"bucket":"${{ env.NOPE }}"}"#,
            "SWAMP_DATASTORE: bucket needs the environment variable NOPE",
        ),
    ] {
        let error = with_variable(value, "").expect_err(value).to_string();
        assert!(error.contains(words), "{value}: {error}");
    }
    let error = RepoConfig::read(Path::new("/no/such"), &environment()).expect_err("nothing there").to_string();
    assert!(error.contains("/no/such/.swamp.yaml") && error.contains("--repo DIR"), "{error}");
}

#[test]
fn what_is_not_known_or_not_applied_is_said() {
    let text = r#"
datastore:
  type: "@swamp/s3-datastore"
  exclude: ["*.tmp", "secrets/**"]
  bukcet: x
  config: {bucket: my-bucket, regoin: y, accessKeyId: never, projectId: z}
"#;
    let warnings = parse(text).expect("usable").warnings;
    for words in [
        "datastore.bukcet is not known",
        "datastore.config.regoin is not known",
        "datastore.config.accessKeyId is not known",
        "datastore.config.projectId is not known",
        "exclude (*.tmp, secrets/**) holds nothing back",
    ] {
        assert!(warnings.iter().any(|warning| warning.contains(words)), "{words}: {warnings:?}");
    }
    assert_eq!(warnings.len(), 5, "{warnings:?}");
    assert!(!warnings.iter().any(|warning| warning.contains("never")), "values are not repeated: {warnings:?}");
}

#[test]
fn an_id_that_leads_elsewhere_has_no_cache_directory() {
    for id in ["..", ".", "a/b", "/etc"] {
        let repo = parse(&format!("repoId: '{id}'")).expect("usable");
        assert_eq!(repo.usual_cache_dir(&environment()), None, "{id}");
    }
}

#[test]
fn two_that_differ_are_both_named() {
    assert_eq!(agree("--region", None, Some("a")), Ok(Some("a")));
    assert_eq!(agree("--region", Some("a"), None), Ok(Some("a")));
    assert_eq!(agree("--region", Some("a"), Some("a")), Ok(Some("a")));
    let error = agree("--region", Some("a"), Some("b")).expect_err("different").to_string();
    assert!(error.contains("--region says \"a\"") && error.contains("says \"b\""), "{error}");
}
