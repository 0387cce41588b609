use reasoning_rpc_cpu::{SIMD_ENV, Simd, SimdError};

#[test]
fn names_are_parsed_exactly() {
    for simd in Simd::ALL {
        let expected = if simd.is_available() {
            Ok(simd)
        } else {
            Err(SimdError::Unavailable { simd })
        };
        assert_eq!(Simd::parse(simd.name()), expected);
    }
    for name in ["", "AVX2", "avx-512", "sse", " avx2"] {
        let error = Simd::parse(name).unwrap_err();
        assert_eq!(
            error,
            SimdError::Unknown {
                name: name.to_owned()
            }
        );
        let text = error.to_string();
        assert!(
            text.contains(&format!("{name:?}")) && text.contains("portable, avx2 or avx512"),
            "{text}"
        );
    }
    let text = SimdError::Unavailable { simd: Simd::Avx512 }.to_string();
    assert!(
        text.contains("avx512") && text.contains(Simd::best().name()),
        "{text}"
    );
}

#[test]
fn best_is_available_and_nothing_above_it_is() {
    let best = Simd::best();
    assert!(best.is_available() && Simd::Portable.is_available());
    let above = Simd::ALL.into_iter().skip_while(|&simd| simd != best).skip(1);
    assert!(above.into_iter().all(|simd| !simd.is_available()));
}

/// The environment is process-wide, so each value gets a process of its own: this test again.
#[test]
fn the_environment_forces_one() {
    if let Ok(expected) = std::env::var("EXPECTED_SIMD") {
        let found = match Simd::from_env() {
            Ok(simd) => simd.name().to_owned(),
            Err(error) => error.to_string(),
        };
        assert_eq!(found, expected);
        return;
    }
    let test = || {
        let mut command = std::process::Command::new(std::env::current_exe().unwrap());
        command
            .args(["--exact", "simd::the_environment_forces_one"])
            .env_remove(SIMD_ENV);
        command
    };
    let passes = |command: &mut std::process::Command| command.output().unwrap().status.success();
    assert!(passes(test().env("EXPECTED_SIMD", Simd::best().name())));
    for simd in Simd::ALL {
        let expected =
            Simd::parse(simd.name()).map_or_else(|error| error.to_string(), |simd| simd.name().to_owned());
        assert!(passes(
            test().env(SIMD_ENV, simd.name()).env("EXPECTED_SIMD", expected)
        ));
    }
    let error = SimdError::Unknown {
        name: "fastest".to_owned(),
    }
    .to_string();
    assert!(passes(
        test().env(SIMD_ENV, "fastest").env("EXPECTED_SIMD", error)
    ));
}
