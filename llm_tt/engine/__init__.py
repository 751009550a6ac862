"""The one door between the app and the models: small frozen questions in, small frozen answers out."""
