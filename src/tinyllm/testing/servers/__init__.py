"""Model servers of the world: scripted or drawn answers in the wire formats of Ollama and OpenAI."""
